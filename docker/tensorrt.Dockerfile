# Build and run TensorRT engines on the GPU that they are for, and TensorRT-RTX engines. From the repository's root:
#
#     docker build -f docker/tensorrt.Dockerfile -t ropevit-export:tensorrt .
#     docker run --rm --gpus all -v "$PWD/bundles:/bundles" ropevit-export:tensorrt \
#         --recipe /opt/recipes/datacentre.toml --model rope_mixed_deit_base --res 384 --out base
#
# The driver comes from the host through NVIDIA's container toolkit. CUDA, cuDNN and TensorRT come as wheels, as they do
# outside a container; tensorrt-cu13 fetches its libraries from NVIDIA's package index by itself.
FROM python:3.11-slim-bookworm

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[tensorrt,openvino]' \
    && install -d /opt/recipes \
    && cp engines/*.toml /opt/recipes/ \
    && rm -rf /src/*

RUN useradd --create-home --uid 1000 exporter && install -d -o 1000 /bundles
USER 1000
WORKDIR /bundles
ENTRYPOINT ["ropevit-export"]
CMD ["doctor"]
