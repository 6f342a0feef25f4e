#include "tools/report/html_report.h"

#include <string_view>

#include "report_page.h"
#include "tools/report/report_data.h"

namespace moec::tools {

std::string html_report(const fb::PlanT& plan) {
  constexpr std::string_view kMark = "{{plan}}";
  std::string html(reinterpret_cast<const char*>(report_page::kHtml), sizeof(report_page::kHtml) - 1);
  return html.replace(html.find(kMark), kMark.size(), report_data(plan));
}

}  // namespace moec::tools
