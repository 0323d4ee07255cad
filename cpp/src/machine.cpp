#include "machine.hpp"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <thread>

namespace ropevit {
namespace {

constexpr const char* known_features[] = {"avx2",        "avx512f",  "avx512_vnni", "avx_vnni", "avx512_bf16",
                                          "avx512_fp16", "amx_tile", "amx_int8",    "amx_bf16", "amx_fp16",
                                          "asimddp",     "i8mm",     "bf16",        "sve",      "sve2"};

std::string trimmed(const std::string& text) {
  const std::size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

// Of the first core.
std::map<std::string, std::string> cpu_fields() {
  std::map<std::string, std::string> found;
  std::ifstream stream("/proc/cpuinfo");
  for (std::string line; std::getline(stream, line);)
    if (const std::size_t colon = line.find(':'); colon != std::string::npos)
      found.emplace(trimmed(line.substr(0, colon)), trimmed(line.substr(colon + 1)));
  return found;
}

int cores() {
  cpu_set_t mine;
  CPU_ZERO(&mine);
  if (sched_getaffinity(0, sizeof mine, &mine) == 0) return CPU_COUNT(&mine);
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

bool has(const std::string& feature) {
  static const std::vector<std::string> features = this_machine().features;
  return std::count(features.begin(), features.end(), feature) != 0;
}

}  // namespace

Machine this_machine() {
  std::map<std::string, std::string> fields = cpu_fields();
  std::istringstream words(fields[fields.count("flags") != 0 ? "flags" : "Features"]);
  const std::set<std::string> flags{std::istream_iterator<std::string>(words), {}};
  Machine found{fields["model name"], {}, cores()};
  for (const char* each : known_features)
    if (flags.count(each) != 0) found.features.emplace_back(each);
  return found;
}

bool ends_at_avx2() { return has("avx2") && !has("avx512f"); }

bool cuts_8_bit_sums() { return has("avx2") && !has("avx512_vnni") && !has("avx_vnni"); }

}  // namespace ropevit
