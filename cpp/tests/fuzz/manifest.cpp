// manifest.json, and what is computed of an artifact's shapes.
#include "../../src/manifest.hpp"

#include "../../src/artifact.hpp"
#include "fuzz.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ropevit;
  fuzz::write(fuzz::folder() / manifest_name, data, size);
  try {
    const Manifest manifest = read_manifest(fuzz::folder());
    for (const Artifact& artifact : manifest.artifacts)
      for (const Size each : artifact.resolutions) {
        artifact.takes(each);
        try {
          sized_images(artifact, each, artifact.batch.min);
          for (const ArrayEntry& output : artifact.outputs) sized(output, artifact, each, artifact.batch.max);
        } catch (const BundleError&) {
        }
      }
    manifest.all_files();
  } catch (const BundleError&) {
  }
  return 0;
}
