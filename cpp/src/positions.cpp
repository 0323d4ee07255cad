#include "positions.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "safetensors.hpp"
#include "text.hpp"

// Every product and sum below is rounded by itself, in the order in which it stands, so that the answers are the
// exporter's to the bit: the build forbids fused multiply-adds.

namespace ropevit {
namespace {

using Extents = std::vector<std::int64_t>;

std::vector<float> floats(const Safetensors& file, const std::string& name) {
  const Safetensors::Array& array = file[name];
  std::vector<float> values(array.bytes / sizeof(float));
  std::memcpy(values.data(), array.data, array.bytes);
  return values;
}

// Numbers of an input. Throws BundleError where they could not be held.
std::size_t count_of(const Extents& shape) {
  double count = 1;
  for (const std::int64_t extent : shape) count *= static_cast<double>(extent);
  if (count > static_cast<double>(std::int64_t{1} << 34))
    throw BundleError("a position input of more than 2^34 numbers.");
  return static_cast<std::size_t>(count);
}

// A table of one axis: (tables, extent, heads, pairs), the first rows of the file's or those of this extent alone.
struct AxisTable {
  std::vector<float> values;
  Extents shape;
  std::int64_t first;

  AxisTable(const Safetensors& file, const std::string& plain, std::int64_t extent) {
    const bool by_extent = !file.has(plain);
    const std::string name = by_extent ? plain + "_by_extent" : plain;
    values = floats(file, name);
    shape = file[name].shape;
    first = by_extent ? extent * (extent - 1) / 2 : 0;
  }

  // heads · pairs numbers.
  const float* row(std::int64_t table, std::int64_t index) const {
    return values.data() + (table * shape[1] + first + index) * shape[2] * shape[3];
  }
};

void fill_tables(const Safetensors& file, std::int64_t rows, std::int64_t columns, std::int64_t prefix,
                 std::vector<PositionInput>& filled) {
  const AxisTable cos_x(file, "cos_x", columns), sin_x(file, "sin_x", columns);
  const AxisTable cos_y(file, "cos_y", rows), sin_y(file, "sin_y", rows);
  const Extents& of = cos_x.shape;
  const std::int64_t tokens = prefix + rows * columns, width = of[2] * of[3];
  const Extents shape{of[0], tokens, of[2], of[3]};
  const std::size_t count = count_of(shape);
  PositionInput cos{"cos", shape, std::vector<float>(count, 1.0F)};  // tokens before the patches don't turn
  PositionInput sin{"sin", shape, std::vector<float>(count, 0.0F)};
  for (std::int64_t table = 0; table < of[0]; ++table)
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t column = 0; column < columns; ++column) {
        const float *cx = cos_x.row(table, column), *sx = sin_x.row(table, column);
        const float *cy = cos_y.row(table, row), *sy = sin_y.row(table, row);
        const auto at = static_cast<std::size_t>((table * tokens + prefix + row * columns + column) * width);
        for (std::int64_t entry = 0; entry < width; ++entry) {
          cos.values[at + static_cast<std::size_t>(entry)] = cx[entry] * cy[entry] - sx[entry] * sy[entry];
          sin.values[at + static_cast<std::size_t>(entry)] = sx[entry] * cy[entry] + cx[entry] * sy[entry];
        }
      }
  filled.push_back(std::move(cos));
  filled.push_back(std::move(sin));
}

// Which four entries of the embedding's side an output lies between, and what they weigh.
struct Taps {
  std::array<std::int64_t, 4> at;
  std::array<double, 4> weight;
};

// Keys' cubic with a = -3/4, as PyTorch resizes; its two pieces are zero where they meet, at distance 1, and beyond 2.
double cubic(double distance) {
  constexpr double a = -0.75;
  const double near = std::min(distance, 1.0), far = std::clamp(distance, 1.0, 2.0);
  const double inner = ((a + 2) * near - (a + 3)) * near * near + 1;
  const double outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a;
  return inner + outer;
}

// The same of bilinear resizing: of four taps two weigh nothing.
double linear(double distance) { return 1 - std::min(distance, 1.0); }

using Kernel = double (*)(double);

// An absolute embedding's name in the file by how it is resized.
constexpr std::array<std::pair<const char*, Kernel>, 2> embeddings{
    {{"pos_embed", cubic}, {"pos_embed_bilinear", linear}}};

std::vector<Taps> taps_of(std::int64_t extent, std::int64_t side, Kernel kernel) {
  std::vector<Taps> found(static_cast<std::size_t>(extent));
  for (std::int64_t index = 0; index < extent; ++index) {
    const double centre =
        (static_cast<double>(index) + 0.5) * static_cast<double>(side) / static_cast<double>(extent) - 0.5;
    const auto low = static_cast<std::int64_t>(std::floor(centre)) - 1;
    for (std::int64_t tap = 0; tap < 4; ++tap) {
      Taps& taps = found[static_cast<std::size_t>(index)];
      taps.at[static_cast<std::size_t>(tap)] = std::clamp<std::int64_t>(low + tap, 0, side - 1);
      taps.weight[static_cast<std::size_t>(tap)] = kernel(std::abs(centre - static_cast<double>(low + tap)));
    }
  }
  return found;
}

void fill_embedding(const Safetensors& file, const std::string& name, Kernel kernel, std::int64_t rows,
                    std::int64_t columns, std::vector<PositionInput>& filled) {
  const std::vector<float> embedding = floats(file, name);
  const Extents& shape = file[name].shape;
  const std::int64_t height = shape[0], side = shape[1], width = shape[2];
  PositionInput resized{"pos_embed", {rows * columns, width}, {}};
  resized.values.reserve(count_of({rows, columns, width}));
  const std::vector<Taps> across = taps_of(columns, side, kernel);
  std::vector<double> line(static_cast<std::size_t>(side * width));
  for (const Taps& row : taps_of(rows, height, kernel)) {
    const auto from = [&](std::size_t tap) { return embedding.data() + row.at[tap] * side * width; };
    for (std::size_t at = 0; at < line.size(); ++at) {
      double sum = 0;
      for (std::size_t tap = 0; tap < 4; ++tap) sum += row.weight[tap] * from(tap)[at];
      line[at] = sum;
    }
    for (const Taps& column : across)
      for (std::int64_t entry = 0; entry < width; ++entry) {
        const auto of = [&](std::size_t tap) { return line[static_cast<std::size_t>(column.at[tap] * width + entry)]; };
        double sum = 0;
        for (std::size_t tap = 0; tap < 4; ++tap) sum += column.weight[tap] * of(tap);
        resized.values.push_back(static_cast<float>(sum));
      }
  }
  filled.push_back(std::move(resized));
}

std::string text_of(const Extents& shape) {
  std::vector<std::string> extents;
  for (const std::int64_t each : shape) extents.push_back(std::to_string(each));
  return "(" + joined(extents) + ")";
}

// What is wrong with a file that is to have the parts of grids up to so many rows and columns; "" for nothing.
std::string fault(const Safetensors& file, std::int64_t rows, std::int64_t columns) {
  std::vector<std::string> tables, held;
  for (const auto& [name, array] : file.arrays()) {
    const bool embedding = std::any_of(embeddings.begin(), embeddings.end(),
                                       [&, of = name](const auto& each) { return of == each.first; });
    if (!embedding) tables.push_back(name);
    held.push_back(printable(name));
    const std::size_t rank = embedding ? 3 : 4;
    if (array.dtype != "F32" || array.shape.size() != rank)
      return printable(name) + " is " + array.dtype + " " + text_of(array.shape) + ", needs F32 of " +
             std::to_string(rank) + " axes";
    const std::vector<float> numbers = floats(file, name);
    if (!std::all_of(numbers.begin(), numbers.end(), [](float each) { return std::isfinite(each); }))
      return printable(name) + " holds NaN or infinite values";
  }
  const std::string ending = file.has("cos_x") ? "" : "_by_extent";
  const std::vector<std::string> wanted{"cos_x" + ending, "cos_y" + ending, "sin_x" + ending, "sin_y" + ending};
  if (held.empty() || (!tables.empty() && tables != wanted))
    return "it holds " + (held.empty() ? "nothing" : joined(held)) + ", needs cos and sin of x and y, or an embedding";
  if (tables.empty()) return "";
  const Extents& first = file["cos_x" + ending].shape;
  for (const auto& [axis, extent] : {std::pair{"x", columns}, std::pair{"y", rows}}) {
    const Extents& cos = file[std::string("cos_") + axis + ending].shape;
    const Extents& sin = file[std::string("sin_") + axis + ending].shape;
    const std::int64_t needed = ending.empty() ? extent : extent * (extent + 1) / 2;
    if (cos != sin || cos[1] < needed || cos[0] != first[0] || cos[2] != first[2] || cos[3] != first[3])
      return std::string("tables along ") + axis + " are of shapes " + text_of(cos) + " and " + text_of(sin) +
             ", needs the same with " + std::to_string(needed) + " rows and more";
  }
  return "";
}

}  // namespace

std::vector<PositionInput> fill_positions(const std::filesystem::path& path, const AnySize& sizes, Size size) {
  const Safetensors file(path);
  if (const std::string wrong = fault(file, sizes.max.height / sizes.patch, sizes.max.width / sizes.patch);
      !wrong.empty())
    throw BundleError(path.string() + " is not a file of position tables: " + wrong + ".");
  if (size.height > sizes.max.height || size.width > sizes.max.width)
    throw BundleError(path.string() + " has no tables for " + ropevit::text_of(size) +
                      ": the graph takes sizes up to " + ropevit::text_of(sizes.max) + ".");
  const int rows = size.height / sizes.patch, columns = size.width / sizes.patch;
  std::vector<PositionInput> filled;
  if (file.has("cos_x") || file.has("cos_x_by_extent")) fill_tables(file, rows, columns, sizes.prefix, filled);
  for (const auto& [name, kernel] : embeddings)
    if (file.has(name)) fill_embedding(file, name, kernel, rows, columns, filled);
  return filled;
}

}  // namespace ropevit
