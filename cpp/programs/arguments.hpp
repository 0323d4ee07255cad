// Command lines: `--name VALUE` or `--name=VALUE`, and what is no option.
#pragma once

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "ropevit/ropevit.hpp"

namespace ropevit {

enum ExitCode { good = 0, failed = 1, usage = 2, out_of_tolerance = 3 };

class UsageError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Arguments {
 public:
  // `options`: those that take a value; `flags`: those that take none.
  Arguments(int count, char** texts, const std::vector<std::string>& options, const std::vector<std::string>& flags) {
    const auto listed = [](const std::vector<std::string>& names, const std::string& name) {
      for (const std::string& each : names)
        if (each == name) return true;
      return false;
    };
    for (int at = 1; at < count; ++at) {
      std::string text = texts[at];
      if (text.rfind("--", 0) != 0 || text == "--") {
        plain.push_back(text);
        continue;
      }
      const std::size_t equals = text.find('=');
      const std::string name = text.substr(0, equals);
      if (listed(flags, name) && equals == std::string::npos) {
        values_[name] = "";
      } else if (listed(options, name)) {
        if (equals == std::string::npos && at + 1 == count) throw UsageError(name + " needs a value.");
        values_[name] = equals == std::string::npos ? texts[++at] : text.substr(equals + 1);
      } else {
        throw UsageError("there is no option " + name + "; --help lists them.");
      }
    }
  }

  bool has(const std::string& name) const { return values_.count(name) != 0; }

  std::string text(const std::string& name, const std::string& otherwise) const {
    const auto found = values_.find(name);
    return found == values_.end() ? otherwise : found->second;
  }

  int number(const std::string& name, int otherwise) const {
    return has(name) ? whole(name, text(name, "")) : otherwise;
  }

  // "384" or "384x512".
  Size size(const std::string& name, Size otherwise) const {
    if (!has(name)) return otherwise;
    const std::string given = text(name, "");
    const std::size_t x = given.find('x');
    const int height = whole(name, given.substr(0, x));
    return {height, x == std::string::npos ? height : whole(name, given.substr(x + 1))};
  }

  std::vector<std::string> plain;

 private:
  static int whole(const std::string& name, const std::string& text) {
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos)
      throw UsageError(name + " was given '" + text + "', needed a whole number.");
    return std::atoi(text.c_str());
  }

  std::map<std::string, std::string> values_;
};

inline Options options_of(const Arguments& arguments) {
  Options options;
  options.backend = arguments.text("--backend", options.backend);
  options.library = arguments.text("--library", "");
  options.device = arguments.text("--device", "");
  options.threads = arguments.number("--threads", 0);
  options.compute = arguments.text("--compute", "");
  return options;
}

}  // namespace ropevit
