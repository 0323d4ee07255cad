#include <cstring>

#include "ropevit/ropevit.h"
#include "ropevit/ropevit.hpp"

struct ropevit_model {
  ropevit::Model model;
};

struct ropevit_answers {
  ropevit::Answers answers;
};

namespace {

thread_local std::string last_error;

// No exception leaves the library through C.
template <class Call>
ropevit_status status_of(Call call) noexcept {
  const auto fail = [](ropevit_status status, const char* text) {
    try {
      last_error = text;
    } catch (...) {
      last_error.clear();
    }
    return status;
  };
  try {
    call();
    return ROPEVIT_OK;
  } catch (const ropevit::BundleError& error) {
    return fail(ROPEVIT_BUNDLE_ERROR, error.what());
  } catch (const ropevit::BackendError& error) {
    return fail(ROPEVIT_BACKEND_ERROR, error.what());
  } catch (const ropevit::InputError& error) {
    return fail(ROPEVIT_INPUT_ERROR, error.what());
  } catch (const std::exception& error) {
    return fail(ROPEVIT_OTHER_ERROR, error.what());
  } catch (...) {
    return fail(ROPEVIT_OTHER_ERROR, "an exception of an unknown kind");
  }
}

ropevit::Pixels pixels(const ropevit_pixels& picture) {
  const auto order = picture.bgr != 0 ? ropevit::ChannelOrder::bgr : ropevit::ChannelOrder::rgb;
  return {picture.data, picture.height, picture.width, static_cast<std::ptrdiff_t>(picture.pitch), order};
}

const char* text(const char* given) { return given == nullptr ? "" : given; }

}  // namespace

const char* ropevit_last_error(void) { return last_error.c_str(); }

ropevit_status ropevit_load(const char* bundle, const ropevit_options* options, ropevit_model** model) {
  return status_of([&] {
    ropevit::Options chosen;
    if (options != nullptr) {
      if (*text(options->backend) != '\0') chosen.backend = options->backend;
      chosen.library = text(options->library);
      chosen.device = text(options->device);
      chosen.threads = options->threads;
      chosen.compute = text(options->compute);
    }
    *model = new ropevit_model{ropevit::Model(text(bundle), chosen)};
  });
}

void ropevit_unload(ropevit_model* model) { delete model; }

size_t ropevit_sizes(const ropevit_model* model) { return model->model.sizes().size(); }

void ropevit_size(const ropevit_model* model, size_t index, int32_t* height, int32_t* width) {
  const ropevit::Size size = model->model.sizes()[index];
  *height = size.height;
  *width = size.width;
}

ropevit_type ropevit_input_type(const ropevit_model* model) {
  return static_cast<ropevit_type>(model->model.input().type);
}

size_t ropevit_input_bytes(const ropevit_model* model, int32_t height, int32_t width) {
  return model->model.input_bytes({height, width});
}

ropevit_status ropevit_describe(const ropevit_model* model, int32_t height, int32_t width, char* said, size_t room) {
  return status_of([&] {
    const std::string found = model->model.describe({height, width});
    if (room == 0) return;
    const size_t length = found.size() < room ? found.size() : room - 1;
    std::memcpy(said, found.data(), length);
    said[length] = '\0';
  });
}

ropevit_status ropevit_prepare(const ropevit_model* model, const ropevit_pixels* picture, int32_t height, int32_t width,
                               void* out) {
  return status_of([&] { model->model.prepare(pixels(*picture), {height, width}, out); });
}

ropevit_status ropevit_crop(const ropevit_model* model, const ropevit_pixels* picture, int32_t height, int32_t width,
                            uint8_t* out) {
  return status_of([&] { model->model.crop(pixels(*picture), {height, width}, out); });
}

ropevit_answers* ropevit_new_answers(void) {
  ropevit_answers* made = nullptr;
  status_of([&] { made = new ropevit_answers; });
  return made;
}

void ropevit_free_answers(ropevit_answers* answers) { delete answers; }

ropevit_status ropevit_run(const ropevit_model* model, const void* images, ropevit_type type, size_t count,
                           int32_t height, int32_t width, ropevit_answers* answers) {
  return status_of([&] {
    const auto format = static_cast<ropevit::DataType>(type);
    model->model.run(ropevit::Batch{images, format, count, {height, width}}, answers->answers);
  });
}

ropevit_status ropevit_run_pixels(const ropevit_model* model, const ropevit_pixels* pictures, size_t count,
                                  int32_t height, int32_t width, ropevit_answers* answers) {
  return status_of([&] {
    std::vector<ropevit::Pixels> all;
    all.reserve(count);
    for (size_t at = 0; at < count; ++at) all.push_back(pixels(pictures[at]));
    model->model.run(all.data(), count, {height, width}, answers->answers);
  });
}

size_t ropevit_answers_size(const ropevit_answers* answers) { return answers->answers.size(); }

ropevit_status ropevit_answer(const ropevit_answers* answers, size_t index, ropevit_tensor* tensor) {
  return status_of([&] {
    const ropevit::Tensor& found = answers->answers[index];
    *tensor = {found.name.c_str(), static_cast<ropevit_type>(found.type),
               found.shape.size(), found.shape.data(),
               found.data,         found.bytes};
  });
}
