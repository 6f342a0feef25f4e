# Writes the schema files as C++ raw string constants.
set(text "#pragma once\n\nnamespace moec::schema_text {\n")
foreach(name ops model plan)
  file(READ ${SOURCE_DIR}/${name}.fbs content)
  string(APPEND text "inline constexpr char ${name}[] = R\"fbs(${content})fbs\";\n")
endforeach()
string(APPEND text "}  // namespace moec::schema_text\n")
file(WRITE ${OUTPUT} "${text}")
