// The processor that this process runs on, as Linux tells, and as ropevit_export/machine/hardware.py names it.
#pragma once

#include <string>
#include <vector>

namespace ropevit {

struct Machine {
  std::string processor;              // "" where Linux does not name it
  std::vector<std::string> features;  // instructions that decide how fast which number format is
  int cores;                          // that this process may use
};

Machine this_machine();

// Whether AVX2's are the widest registers here.
bool ends_at_avx2();

// Whether kernels of 8 bits cut sums of two products at 16 bits here: x86 without VNNI.
bool cuts_8_bit_sums();

}  // namespace ropevit
