// JSON that somebody else wrote, field by field: what is not as it must be is named by its place, as Python names it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ropevit {

// Throws BundleError for what is no JSON, or lies too deep in one another.
nlohmann::json parse_json(std::string_view text);

// A value and its place, such as artifacts.0.batch.min. Throws BundleError that begins with the place. The JSON must
// outlive it.
class Field {
 public:
  static constexpr std::size_t any = static_cast<std::size_t>(-1);

  explicit Field(const nlohmann::json& json, std::string place = "") : json_(&json), place_(std::move(place)) {}

  Field at(const std::string& name) const;                   // which must be there
  std::optional<Field> find(const std::string& name) const;  // nothing where it is not there, or null
  // Of a list, which must have so many.
  std::vector<Field> items(std::size_t low = 0, std::size_t high = any) const;
  std::vector<std::pair<std::string, Field>> members() const;  // of an object

  bool is_text() const { return json_->is_string(); }
  std::string text() const;  // without control characters, which a terminal would obey
  bool flag() const;
  std::int64_t whole(std::int64_t low, std::int64_t high) const;
  double number() const;  // finite

  [[noreturn]] void refuse(const std::string& why) const;

 private:
  Field inside(const nlohmann::json& json, const std::string& name) const;
  [[noreturn]] void need(const std::string& what) const;

  const nlohmann::json* json_;
  std::string place_;
};

}  // namespace ropevit
