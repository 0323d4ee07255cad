/* The C interface, for other languages: what ropevit.hpp says, with status codes in place of exceptions.
 *
 *   ropevit_model* model;
 *   if (ropevit_load("engines/rope_mixed_deit_base-384-fp32", NULL, &model) != ROPEVIT_OK)
 *     puts(ropevit_last_error());
 *
 * A model may be used by several threads at once, answers by one. */
#ifndef ROPEVIT_ROPEVIT_H
#define ROPEVIT_ROPEVIT_H

#include <stddef.h>
#include <stdint.h>

#include "ropevit/api.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ropevit_status {
  ROPEVIT_OK = 0,
  ROPEVIT_BUNDLE_ERROR = 1,  /* the folder is no bundle, or a file is not what its manifest says */
  ROPEVIT_BACKEND_ERROR = 2, /* a runtime is missing, can't serve the bundle here, or failed to run */
  ROPEVIT_INPUT_ERROR = 3,   /* the bundle can't take these images */
  ROPEVIT_OTHER_ERROR = 4    /* out of memory, for one */
} ropevit_status;

typedef enum ropevit_type {
  ROPEVIT_UINT8 = 0,
  ROPEVIT_FLOAT16 = 1,
  ROPEVIT_BFLOAT16 = 2,
  ROPEVIT_FLOAT32 = 3
} ropevit_type;

typedef struct ropevit_model ropevit_model;
typedef struct ropevit_answers ropevit_answers;

/* Zero or NULL: the default. */
typedef struct ropevit_options {
  const char* backend; /* onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino, tensorrt, tensorrt-rtx */
  const char* library; /* the runtime's shared library */
  const char* device;  /* of OpenVINO, or the number of the GPU */
  int32_t threads;     /* that one run is spread over on a CPU */
  const char* compute; /* in OpenVINO: f32 or bf16 */
} ropevit_options;

/* 8 bits a channel, three channels a pixel, row by row. */
typedef struct ropevit_pixels {
  const uint8_t* data;
  int32_t height;
  int32_t width;
  int64_t pitch; /* bytes from one row to the next; 0: rows follow one another */
  int32_t bgr;   /* 0: red first */
} ropevit_pixels;

/* One answer; its memory belongs to the answers that it is taken from. */
typedef struct ropevit_tensor {
  const char* name;
  ropevit_type type;
  size_t rank;
  const int64_t* shape;
  const void* data;
  size_t bytes;
} ropevit_tensor;

/* Why the last call of this thread failed. */
ROPEVIT_API const char* ropevit_last_error(void);

/* `options` may be NULL. */
ROPEVIT_API ropevit_status ropevit_load(const char* bundle, const ropevit_options* options, ropevit_model** model);
ROPEVIT_API void ropevit_unload(ropevit_model* model);

/* How many sizes a bundle was made for, and the one of an index, which must be below that. */
ROPEVIT_API size_t ropevit_sizes(const ropevit_model* model);
ROPEVIT_API void ropevit_size(const ropevit_model* model, size_t index, int32_t* height, int32_t* width);
/* The format of what `ropevit_prepare` makes and `ropevit_run` takes. */
ROPEVIT_API ropevit_type ropevit_input_type(const ropevit_model* model);
/* Of one image. */
ROPEVIT_API size_t ropevit_input_bytes(const ropevit_model* model, int32_t height, int32_t width);
/* The artifact that serves a size, and what it runs on; at most `room` bytes, with the closing zero. */
ROPEVIT_API ropevit_status ropevit_describe(const ropevit_model* model, int32_t height, int32_t width, char* text,
                                            size_t room);

/* A picture as the graph takes it. `out` has room for `ropevit_input_bytes`. */
ROPEVIT_API ropevit_status ropevit_prepare(const ropevit_model* model, const ropevit_pixels* picture, int32_t height,
                                           int32_t width, void* out);
/* A picture resized and cropped: height * width * 3 RGB bytes. */
ROPEVIT_API ropevit_status ropevit_crop(const ropevit_model* model, const ropevit_pixels* picture, int32_t height,
                                        int32_t width, uint8_t* out);

/* Answers are made once and given to every run; for the same shapes a run then allocates nothing. */
ROPEVIT_API ropevit_answers* ropevit_new_answers(void);
ROPEVIT_API void ropevit_free_answers(ropevit_answers* answers);

/* `count` images as the graph takes them, one after the other. */
ROPEVIT_API ropevit_status ropevit_run(const ropevit_model* model, const void* images, ropevit_type type, size_t count,
                                       int32_t height, int32_t width, ropevit_answers* answers);
/* The same on pictures, which may have sizes of their own, prepared for height and width. */
ROPEVIT_API ropevit_status ropevit_run_pixels(const ropevit_model* model, const ropevit_pixels* pictures, size_t count,
                                              int32_t height, int32_t width, ropevit_answers* answers);

ROPEVIT_API size_t ropevit_answers_size(const ropevit_answers* answers);
ROPEVIT_API ropevit_status ropevit_answer(const ropevit_answers* answers, size_t index, ropevit_tensor* tensor);

#ifdef __cplusplus
}
#endif

#endif
