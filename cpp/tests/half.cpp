// half.hpp on every number that is asked: IN's float32 as bfloat16 and as float16, then all of both as float32, to OUT.
#include "../src/half.hpp"

#include <fstream>

namespace {

template <class Number>
void put(std::ofstream& out, Number number) {
  out.write(reinterpret_cast<const char*>(&number), sizeof number);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  std::ifstream in(arguments[1], std::ios::binary);
  std::ofstream out(arguments[2], std::ios::binary);
  float number;
  while (in.read(reinterpret_cast<char*>(&number), sizeof number)) {
    put(out, ropevit::to_bfloat16(number));
    put(out, ropevit::to_float16(number));
  }
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    put(out, ropevit::from_bfloat16(static_cast<std::uint16_t>(bits)));
    put(out, ropevit::from_float16(static_cast<std::uint16_t>(bits)));
  }
  return out.flush().good() ? 0 : 1;
}
