#include "json.hpp"

#include <algorithm>
#include <cmath>

#include "ropevit/ropevit.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

using Json = nlohmann::json;

// As deep as Python's reader goes; whatever copies or frees deeper lists would run out of stack.
constexpr int deepest = 200;

}  // namespace

Json parse_json(std::string_view text) {
  std::string key;  // the last that was read
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > deepest) throw BundleError("its lists and objects lie more than 200 deep in one another");
    if (event == Json::parse_event_t::key) key = parsed.get<std::string>();
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::exception& error) {
    const std::string said = error.what();  // "[json.exception.…] parse error at line 1, column 2: …"
    const std::size_t end = said.find("] ");
    throw BundleError((key.empty() ? "" : "behind " + in_quotes(printable(key)) + ": ") +
                      (end == std::string::npos ? said : said.substr(end + 2)));
  }
}

void Field::refuse(const std::string& why) const {
  throw BundleError((place_.empty() ? "the file" : printable(place_)) + ": " + why);
}

void Field::need(const std::string& what) const {
  const bool small = json_->is_number() || json_->is_boolean() || json_->is_null();
  refuse((small ? json_->dump() : std::string("a value of type ") + json_->type_name()) + " was given, needs " + what);
}

Field Field::inside(const Json& json, const std::string& name) const {
  return Field(json, place_.empty() ? name : place_ + "." + name);
}

Field Field::at(const std::string& name) const {
  if (!json_->is_object()) need("an object");
  const auto found = json_->find(name);
  if (found == json_->end()) refuse("it has no " + name);
  return inside(*found, name);
}

std::optional<Field> Field::find(const std::string& name) const {
  if (!json_->is_object()) need("an object");
  const auto found = json_->find(name);
  if (found == json_->end() || found->is_null()) return std::nullopt;
  return inside(*found, name);
}

std::vector<Field> Field::items(std::size_t low, std::size_t high) const {
  if (!json_->is_array()) need("a list");
  if (json_->size() < low || json_->size() > high)
    refuse("a list of " + std::to_string(json_->size()) + " was given, needs " + std::to_string(low) +
           (high == low   ? ""
            : high == any ? " or more"
                          : " to " + std::to_string(high)));
  std::vector<Field> found;
  found.reserve(json_->size());
  for (const Json& each : *json_) found.push_back(inside(each, std::to_string(found.size())));
  return found;
}

std::vector<std::pair<std::string, Field>> Field::members() const {
  if (!json_->is_object()) need("an object");
  std::vector<std::pair<std::string, Field>> found;
  for (const auto& [name, each] : json_->items()) found.emplace_back(name, inside(each, name));
  return found;
}

std::string Field::text() const {
  if (!json_->is_string()) need("text");
  auto found = json_->get<std::string>();
  if (std::any_of(found.begin(), found.end(), is_control)) refuse("its text holds a control character");
  return found;
}

bool Field::flag() const {
  if (!json_->is_boolean()) need("true or false");
  return json_->get<bool>();
}

std::int64_t Field::whole(std::int64_t low, std::int64_t high) const {
  // Positive ones are held unsigned, up to twice as large as what fits.
  const bool fits =
      json_->is_number_integer() && (!json_->is_number_unsigned() || json_->get<std::uint64_t>() >> 63 == 0);
  if (!fits || json_->get<std::int64_t>() < low || json_->get<std::int64_t>() > high)
    need("a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  return json_->get<std::int64_t>();
}

double Field::number() const {
  if (!json_->is_number() || !std::isfinite(json_->get<double>())) need("a number");
  return json_->get<double>();
}

}  // namespace ropevit
