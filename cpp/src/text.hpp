// What error texts are made of.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace ropevit {

inline std::string in_quotes(const std::string& text) { return "'" + text + "'"; }

// What a terminal obeys and does not show.
inline bool is_control(char each) { return (each >= 0 && each < 0x20) || each == 0x7f; }

// With those spelled out.
inline std::string printable(const std::string& text) {
  std::string found;
  for (const char each : text)
    if (is_control(each))
      found += std::string("\\x") + "0123456789abcdef"[each >> 4] + "0123456789abcdef"[each & 15];
    else
      found += each;
  return found;
}

inline std::string joined(const std::vector<std::string>& texts, const char* between = ", ") {
  std::string found;
  for (const std::string& each : texts) found += (found.empty() ? "" : between) + each;
  return found;
}

// The first line that is not empty of what a library said: the rest is a trace.
inline std::string first_line(std::string_view said) {
  while (!said.empty() && (said.front() == '\n' || said.front() == ' ')) said.remove_prefix(1);
  const std::string_view line = said.substr(0, said.find('\n'));
  return line.empty() ? "it gave no reason" : std::string(line.substr(0, 300));
}

// The last one, where the reason stands below the places that it came through.
inline std::string last_line(std::string_view said) {
  while (!said.empty() && (said.back() == '\n' || said.back() == ' ')) said.remove_suffix(1);
  const std::size_t end = said.rfind('\n');
  return first_line(end == std::string_view::npos ? said : said.substr(end + 1));
}

}  // namespace ropevit
