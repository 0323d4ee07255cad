#include "picture.hpp"

#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include <jpeglib.h>

namespace ropevit {
namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

// A few bytes can stand for more memory than a machine has; as many as ropevit-export reads.
constexpr std::size_t most_pixels = 178'000'000;
constexpr const char* too_large = "it has more than 178 million pixels";

// libjpeg reports by leaving its call; a frame that holds no objects catches it.
struct JpegErrors {
  jpeg_error_mgr base;
  std::jmp_buf back;
  char said[JMSG_LENGTH_MAX];
};

void leave(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  info->err->format_message(info, errors->said);
  std::longjmp(errors->back, 1);
}

// Warnings, such as that the file ends too early: the first is kept, the picture is then refused.
void keep_warning(j_common_ptr info, int level) {
  if (level >= 0) return;  // a trace
  if (info->err->num_warnings++ == 0) info->err->format_message(info, reinterpret_cast<JpegErrors*>(info->err)->said);
}

// What goes wrong is in `errors`; `picture` is then unfinished.
bool decode_jpeg(std::FILE* file, jpeg_decompress_struct& info, JpegErrors& errors, Picture& picture) {
  info.err = jpeg_std_error(&errors.base);
  errors.base.error_exit = leave;
  errors.base.emit_message = keep_warning;
  if (setjmp(errors.back) != 0) return false;
  jpeg_create_decompress(&info);
  jpeg_stdio_src(&info, file);
  jpeg_read_header(&info, TRUE);
  if (info.num_components == 4) {
    std::snprintf(errors.said, sizeof errors.said, "it has four channels, needed grey or colour");
    return false;
  }
  if (std::size_t{info.image_width} * info.image_height > most_pixels) {
    std::snprintf(errors.said, sizeof errors.said, "%s", too_large);
    return false;
  }
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  picture.height = static_cast<int>(info.output_height);
  picture.width = static_cast<int>(info.output_width);
  const std::size_t line = std::size_t{3} * info.output_width;
  picture.rgb.resize(line * info.output_height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = picture.rgb.data() + line * info.output_scanline;
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  return errors.base.num_warnings == 0;
}

Picture jpeg(std::FILE* file, const std::string& path) {
  Picture picture{};
  jpeg_decompress_struct info{};
  JpegErrors errors{};
  const bool done = decode_jpeg(file, info, errors, picture);
  jpeg_destroy_decompress(&info);
  if (!done) throw InputError(path + " can't be read as a JPEG: " + errors.said + ".");
  return picture;
}

Picture png(std::FILE* file, const std::string& path) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  const std::unique_ptr<png_image, void (*)(png_image*)> held(&image, png_image_free);
  if (png_image_begin_read_from_stdio(&image, file) == 0)
    throw InputError(path + " can't be read as a PNG: " + image.message + ".");
  if (std::size_t{image.width} * image.height > most_pixels)
    throw InputError(path + " can't be read as a PNG: " + too_large + ".");
  if ((image.format & PNG_FORMAT_FLAG_LINEAR) != 0)
    throw InputError(path + " has 16 bits a channel, needed 8: convert it.");
  // Colours below an alpha channel as they are stored: Pillow drops the channel and blends nothing.
  const bool alpha = (image.format & PNG_FORMAT_FLAG_ALPHA) != 0;
  image.format = alpha ? PNG_FORMAT_RGBA : PNG_FORMAT_RGB;
  Picture picture{static_cast<int>(image.height), static_cast<int>(image.width), {}};
  std::vector<std::uint8_t> decoded(PNG_IMAGE_SIZE(image));
  if (png_image_finish_read(&image, nullptr, decoded.data(), 0, nullptr) == 0)
    throw InputError(path + " can't be read as a PNG: " + image.message + ".");
  if (!alpha) {
    picture.rgb = std::move(decoded);
    return picture;
  }
  picture.rgb.resize(decoded.size() / 4 * 3);
  for (std::size_t from = 0, to = 0; from < decoded.size(); from += 4, to += 3)
    std::memcpy(picture.rgb.data() + to, decoded.data() + from, 3);
  return picture;
}

}  // namespace

Picture read_picture(const std::string& path) {
  std::error_code missing;
  const bool there = std::filesystem::exists(path, missing);
  if (there && !std::filesystem::is_regular_file(path, missing))  // a pipe would be waited for
    throw InputError(path + " can't be read: it is a folder, pipe, socket or device, needs a file.");
  const File file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) throw InputError(path + " can't be read.");
  unsigned char start[8] = {};
  const std::size_t count = std::fread(start, 1, sizeof start, file.get());
  std::rewind(file.get());
  if (count >= 3 && start[0] == 0xff && start[1] == 0xd8 && start[2] == 0xff) return jpeg(file.get(), path);
  if (count == sizeof start && png_sig_cmp(start, 0, sizeof start) == 0) return png(file.get(), path);
  throw InputError(path + " is neither a JPEG nor a PNG file.");
}

}  // namespace ropevit
