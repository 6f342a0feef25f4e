"""Reads safetensors files with PyTorch alone."""

import json

from shared import reading

import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "I32": torch.int32, "U8": torch.uint8}


def read_tensors(path):
    """The tensors of a file by name."""
    tensors = {}
    with reading(path):
        data = path.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:header]).items():
            if name == "__metadata__":
                continue
            begin, end = (header + at for at in entry["data_offsets"])
            values = torch.frombuffer(bytearray(data[begin:end]), dtype=DTYPES[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"])
    return tensors
