// positions.safetensors, filled for some grids.
#include "../../src/positions.hpp"

#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::filesystem::path path = fuzz::folder() / "positions.safetensors";
  fuzz::write(path, data, size);
  for (const auto& [rows, columns, prefix] : {std::tuple{1, 1, 0}, std::tuple{2, 3, 1}, std::tuple{5, 4, 5}}) try {
      const ropevit::Size grid{rows, columns};
      ropevit::fill_positions(path, ropevit::AnySize{grid, 1, 1, prefix}, grid);
    } catch (const ropevit::BundleError&) {
    }
  return 0;
}
