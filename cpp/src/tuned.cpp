#include "tuned.hpp"

#include <algorithm>

#include "backend.hpp"
#include "file.hpp"
#include "json.hpp"
#include "machine.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

constexpr std::size_t most_bytes = std::size_t{1} << 20;
constexpr std::int64_t most_threads = 4096;

// tuned.json, as far as a host needs it.
struct Tuned {
  std::string manifest_sha256, version, goal;
  Machine machine;
  Options chosen;
};

std::string one_of(const Field& field, const std::vector<std::string>& words) {
  std::string word = field.text();
  if (std::find(words.begin(), words.end(), word) == words.end())
    field.refuse(in_quotes(word) + " was given, there are " + joined(words));
  return word;
}

int count(const Field& field) { return static_cast<int>(field.whole(1, most_threads)); }

Options setting(const Field& field) {
  Options found;
  found.backend = one_of(field.at("backend"), backends());
  if (const auto form = field.find("form"))
    found.form = one_of(*form, {"portable", "onnxruntime", "openvino", "openvino-avx2"});
  if (const auto compute = field.find("compute")) found.compute = one_of(*compute, {"f32", "bf16"});
  if (const auto threads = field.find("threads")) found.threads = count(*threads);
  if (const auto streams = field.find("streams")) found.streams = count(*streams);
  return found;
}

Tuned tuned(const Field& field) {
  field.at("schema_version").whole(1, 1);
  const Field machine = field.at("machine");
  Tuned found{field.at("manifest_sha256").text(),
              "",
              one_of(field.at("goal"), {"latency", "throughput"}),
              {machine.at("processor").text(), {}, 0},
              setting(field.at("chosen"))};
  if (const auto version = field.find("version")) found.version = version->text();
  for (const Field& each : machine.at("features").items()) found.machine.features.push_back(each.text());
  if (const auto cores = machine.find("cores")) found.machine.cores = static_cast<int>(cores->whole(0, 1 << 20));
  return found;
}

bool is_there(const std::string& backend) { return !version_of(backend).empty(); }

Choice otherwise(const std::string& reason) {
  Options options;
  options.backend = is_there("openvino") ? "openvino" : "onnxruntime";
  return {options, "the default, " + reason};
}

// A package's release may have one more number than its library says.
bool is_of(const std::string& package, const std::string& library) {
  return !library.empty() && (package == library || package.rfind(library + ".", 0) == 0);
}

}  // namespace

Choice choose(const std::filesystem::path& bundle) {
  const std::filesystem::path path = bundle / tuned_name;
  std::error_code missing;
  if (!std::filesystem::exists(path, missing)) return otherwise("this bundle was not tuned");
  const std::string content = read_file(path, most_bytes);
  const Tuned found = [&] {
    try {
      return tuned(Field(parse_json(content)));
    } catch (const BundleError& error) {
      throw BundleError(path.string() + ": " + error.what() + ". Remove it, or run tune again.");
    }
  }();
  const Machine here = this_machine();
  if (found.manifest_sha256 != sha256_of(bundle / manifest_name))
    return otherwise(std::string(tuned_name) + " is of another manifest");
  if (found.machine.processor != here.processor || found.machine.features != here.features ||
      found.machine.cores != here.cores)
    return otherwise(std::string(tuned_name) + " is of another machine (" + found.machine.processor + ", " +
                     std::to_string(found.machine.cores) + " cores)");
  if (!is_of(found.version, version_of(found.chosen.backend)))
    return otherwise(std::string(tuned_name) + " is of " + found.chosen.backend + " " + found.version);
  return {found.chosen, "as tuned for " + found.goal + " on this machine"};
}

}  // namespace ropevit
