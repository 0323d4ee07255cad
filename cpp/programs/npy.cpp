#include "npy.hpp"

#include <cstring>
#include <fstream>

namespace ropevit {

void write_npy(const std::filesystem::path& path, const Tensor& tensor) {
  std::string header = "{'descr': '";
  header += tensor.type == DataType::float16 ? "<f2" : tensor.type == DataType::uint8 ? "|u1" : "<f4";
  header += "', 'fortran_order': False, 'shape': (";
  for (const std::int64_t extent : tensor.shape) header += std::to_string(extent) + ",";
  header += "), }";
  constexpr std::size_t before = 10, alignment = 64;  // magic, version, the header's length
  header.append(alignment - (before + header.size() + 1) % alignment, ' ');
  header += '\n';
  std::ofstream stream(path, std::ios::binary);
  stream.write("\x93NUMPY\x01\x00", 8);
  const char length[2] = {static_cast<char>(header.size() & 0xff), static_cast<char>(header.size() >> 8)};
  stream.write(length, 2);
  stream << header;
  if (tensor.type == DataType::bfloat16) {
    const auto* halves = tensor.as<std::uint16_t>();
    for (std::size_t at = 0; at < tensor.bytes / 2; ++at) {
      const std::uint32_t bits = std::uint32_t{halves[at]} << 16;
      stream.write(reinterpret_cast<const char*>(&bits), sizeof bits);
    }
  } else {
    stream.write(static_cast<const char*>(tensor.data), static_cast<std::streamsize>(tensor.bytes));
  }
  stream.close();
  if (!stream) throw InputError(path.string() + " can't be written.");
}

}  // namespace ropevit
