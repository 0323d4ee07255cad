// A picture of any extents, pitch and order of channels, prepared in every way. The picture's memory is what its view
// says to the byte, so that a read beside it is seen.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../../src/preprocess.hpp"
#include "fuzz.hpp"

namespace {

// Numbers off the front of the bytes; 0 where they have ended.
class Numbers {
 public:
  Numbers(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  int next(int count) {  // 0 to count - 1
    if (size_ < 2) return 0;
    const int found = data_[0] | data_[1] << 8;
    data_ += 2, size_ -= 2;
    return found % count;
  }

  const std::uint8_t* data_;
  std::size_t size_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ropevit;
  Numbers numbers(data, size);
  Preprocess how{};
  how.mean = {0.5, 0.25, 0.0};
  how.deviation = {0.5, 0.25, 1.0};
  how.interpolation = numbers.next(2) == 0 ? Interpolation::bicubic : Interpolation::bilinear;
  how.squash = numbers.next(2) == 0;
  how.crop = (1 + numbers.next(100)) / 100.0;
  how.type = std::vector{DataType::uint8, DataType::float16, DataType::bfloat16,
                         DataType::float32}[static_cast<std::size_t>(numbers.next(4))];
  how.nhwc = how.type == DataType::uint8;
  const Size wanted{1 + numbers.next(48), 1 + numbers.next(48)};
  Pixels picture;
  picture.order = numbers.next(2) == 0 ? ChannelOrder::rgb : ChannelOrder::bgr;
  picture.height = numbers.next(300);  // of no pixel too
  picture.width = numbers.next(300);
  const int apart = numbers.next(8);  // bytes between rows; the last two: rows that overlap, from the bottom up
  const std::ptrdiff_t row = std::ptrdiff_t{3} * picture.width;
  picture.pitch = apart == 0 ? 0 : apart == 6 ? row - 1 : apart == 7 ? -row : row + apart;
  const std::ptrdiff_t pitch = picture.pitch == 0 ? row : picture.pitch;
  const auto bytes = static_cast<std::size_t>(std::abs(pitch) * (picture.height - 1) + row);
  std::unique_ptr<std::uint8_t[]> memory;
  if (picture.height > 0 && picture.width > 0) {
    memory.reset(new std::uint8_t[bytes]);
    for (std::size_t at = 0; at < bytes; ++at)
      memory[at] = numbers.size_ == 0 ? std::uint8_t{255} : numbers.data_[at % numbers.size_];
    picture.data = memory.get() + (pitch < 0 ? -pitch * (picture.height - 1) : 0);
  }
  const std::size_t pixels = static_cast<std::size_t>(wanted.height) * static_cast<std::size_t>(wanted.width) * 3;
  const std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[pixels * size_of(how.type)]);
  Preparation preparation;
  try {
    preparation.prepare(picture, how, Normaliser(how), wanted, out.get());
  } catch (const InputError&) {
  }
  return 0;
}
