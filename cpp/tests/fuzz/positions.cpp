// positions.safetensors, filled for some grids.
#include "../../src/positions.hpp"

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::filesystem::path path = fuzz::folder() / "positions.safetensors";
  fuzz::write(path, data, size);
  for (const auto& [rows, columns, prefix] : {std::tuple{1, 1, 0}, std::tuple{2, 3, 1}, std::tuple{5, 4, 5}}) try {
      ropevit::fill_positions(path, rows, columns, prefix);
    } catch (const ropevit::BundleError&) {
    }
  return 0;
}
