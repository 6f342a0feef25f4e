# Writes page.html, with its style and scripts put in, as a C++ constant.
#   cmake -D OUTPUT=report_page.h -D SOURCE_DIR=tools/report "-DSCRIPTS=a.js b.js" -P embed.cmake
separate_arguments(SCRIPTS)
file(READ ${SOURCE_DIR}/page.html html)
file(READ ${SOURCE_DIR}/page.css style)
set(script "'use strict';\n")
foreach(name ${SCRIPTS})
  file(READ ${SOURCE_DIR}/${name} text)
  string(APPEND script "${text}")
endforeach()
string(REPLACE "{{style}}" "${style}" html "${html}")
string(REPLACE "{{script}}" "${script}" html "${html}")

# Compilers limit the length of a literal, not that of an array of characters.
file(WRITE ${OUTPUT}.html "${html}")
file(READ ${OUTPUT}.html hex HEX)
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
file(WRITE ${OUTPUT} "#pragma once

namespace moec::report_page {
inline constexpr unsigned char kHtml[] = {${bytes}0};
}  // namespace moec::report_page
")
