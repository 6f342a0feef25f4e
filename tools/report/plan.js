// The plan that the page holds: columns become objects, ids become references.

const kKindNames = {
  Param: 'weights',
  Grad: 'gradients',
  OptimizerState: 'optimizer state',
  Saved: 'saved for backward',
  Temp: 'temporaries',
  Workspace: 'workspace',
  Scalar: 'train state',
  Io: 'data and I/O',
};
const kArenaNames = {
  Params: 'weights',
  Grads: 'gradients',
  OptimizerState: 'optimizer state',
  State: 'train state, data window',
  Activations: 'activations',
};
const kArenaColours = {
  Params: 'param',
  Grads: 'grad',
  OptimizerState: 'optimizerstate',
  State: 'io',
  Activations: 'saved'
};

/// Rows of a table of columns; `texts` names the columns of string ids.
function rows(columns, texts, strings) {
  const names = Object.keys(columns ?? {});
  const count = names.length === 0 ? 0 : columns[names[0]].length;
  return Array.from({length: count}, (_, i) => {
    const row = {id: i};
    for (const name of names) row[name] = texts.includes(name) ? strings[columns[name][i]] : columns[name][i];
    return row;
  });
}

/// What keeps an instruction from being faster. `arithmetic` and `traffic` are the shares of its time that
/// its FLOPs and bytes take at the device's ceilings.
function classify(instruction, ceilings) {
  const {flops, bytes, seconds} = instruction;
  instruction.arithmetic = seconds > 0 ? flops / instruction.ceiling / seconds : 0;
  instruction.traffic = seconds > 0 ? bytes / ceilings.bytes / seconds : 0;
  const most = Math.max(instruction.arithmetic, instruction.traffic);
  instruction.limit = most < 0.5                   ? 'neither' :
      instruction.arithmetic > instruction.traffic ? 'arithmetic' :
                                                     'traffic';
}

/// Adds the bytes of a program's activations that are live at each instruction, by kind.
function addLiveBytes(program, alignment) {
  const count = program.instructions.length;
  program.live = {};
  for (const kind of ['Saved', 'Temp', 'Workspace', 'Io', 'Scalar'])
    program.live[kind] = new Float64Array(count + 1);
  for (const buffer of program.buffers) {
    const size = Math.ceil(buffer.size / alignment) * alignment;
    const changes = program.live[buffer.kind];
    changes[buffer.first] += size;
    changes[buffer.last + 1] -= size;
  }
  program.liveTotal = new Float64Array(count);
  for (const changes of Object.values(program.live))
    for (let i = 0; i < count; ++i) {
      if (i > 0) changes[i] += changes[i - 1];
      program.liveTotal[i] += changes[i];
    }
}

function readPlan(data) {
  const {strings, header, ceilings} = data;
  const instructions = rows(data.instructions, ['label', 'kernel', 'op'], strings);
  const buffers = rows(data.buffers, ['name', 'kind', 'arena'], strings);
  const tensors = rows(data.tensors, ['name', 'type'], strings);
  const bases = {};
  let base = 0;
  for (const arena of header.arenas) {
    bases[arena.kind] = base;
    base += arena.size;
  }
  const programs =
      data.programs.map((program) => ({
                          ...program,
                          instructions: instructions.slice(program.first, program.first + program.count),
                          buffers: [],
                        }));
  for (const program of programs) {
    program.instructions.forEach((instruction, i) => {
      instruction.program = program;
      instruction.index = i;
      classify(instruction, ceilings);
    });
    program.seconds = program.instructions.reduce((sum, instruction) => sum + instruction.seconds, 0);
  }
  const persistent = [];
  for (const buffer of buffers) {
    buffer.base = bases[buffer.arena];
    buffer.owner = buffer.program < 0 ? null : programs[buffer.program];
    buffer.maker = buffer.owner === null ? null : buffer.owner.instructions[buffer.first];
    (buffer.owner === null ? persistent : buffer.owner.buffers).push(buffer);
  }
  for (const program of programs) addLiveBytes(program, header.alignment);
  const step = programs.reduce((sum, program) => sum + program.runs_per_step * program.seconds, 0);
  return {
    header,
    ceilings,
    programs,
    instructions,
    buffers,
    persistent,
    tensors,
    blocks: data.blocks,
    stepSeconds: step
  };
}

/// The kernels of an optimizer step, their calls added up.
function kernelRows(plan) {
  const kernels = new Map();
  for (const program of plan.programs) {
    const runs = program.runs_per_step;
    if (runs === 0) continue;
    for (const instruction of program.instructions) {
      const name = instruction.kernel;
      if (!kernels.has(name))
        kernels.set(name, {name, calls: 0, flops: 0, bytes: 0, seconds: 0, first: instruction});
      const kernel = kernels.get(name);
      kernel.calls += runs;
      kernel.flops += runs * instruction.flops;
      kernel.bytes += runs * instruction.bytes;
      kernel.seconds += runs * instruction.seconds;
    }
  }
  return [...kernels.values()];
}
