# Export, check and run bundles on a CPU. From the repository's root:
#
#     docker build -f docker/cpu.Dockerfile -t ropevit-export .
#     docker run --rm -v "$PWD/bundles:/bundles" ropevit-export --model rope_mixed_deit_digits --res 32 --out digits
#
# PyTorch's build without CUDA makes the image some gigabytes smaller: name PyTorch's index of it in
# --build-arg TORCH_INDEX=…
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=""
WORKDIR /src
COPY . .
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch torchvision; \
    fi \
    && pip install --no-cache-dir -c constraints.txt '.[openvino]' \
    && rm -rf /src/*

RUN useradd --create-home --uid 1000 exporter && install -d -o 1000 /bundles
USER 1000
WORKDIR /bundles
ENTRYPOINT ["ropevit-export"]
CMD ["doctor"]
