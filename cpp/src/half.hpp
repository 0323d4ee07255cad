// 16-bit floats, rounded to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace ropevit {

inline std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint16_t to_bfloat16(float value) {
  const std::uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);  // NaN stays one
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(std::uint16_t half) { return float_of(std::uint32_t{half} << 16); }

inline std::uint16_t to_float16(float value) {
  const std::uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude >= 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7c00 | (magnitude > 0x7f800000 ? 0x200 : 0));
  if (magnitude >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // rounds beyond 65504
  if (magnitude >= 0x38800000)  // normal: 13 bits fewer, and another bias of the exponent
    return static_cast<std::uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13));
  if (magnitude < 0x33000000) return static_cast<std::uint16_t>(sign);  // below half of the smallest
  // Subnormal, a multiple of 2^-24.
  const int shift = 126 - static_cast<int>(magnitude >> 23);  // 14 to 24
  const std::uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
  const std::uint32_t below = mantissa & ((1u << shift) - 1), tie = 1u << (shift - 1);
  std::uint32_t rounded = mantissa >> shift;
  if (below > tie || (below == tie && (rounded & 1) != 0)) ++rounded;
  return static_cast<std::uint16_t>(sign | rounded);
}

inline float from_float16(std::uint16_t half) {
  const std::uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 0x1f) return float_of(sign | 0x7f800000 | mantissa << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

}  // namespace ropevit
