# The command with ONNX Runtime:  docker build -t gqa2mla . && docker run --rm -v "$PWD:/models" gqa2mla inspect /models/MODEL
FROM rust:1.92-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN cargo build --release --locked --no-default-features

FROM python:3.12-slim-bookworm
RUN pip install --no-cache-dir onnxruntime==1.32.0
COPY --from=build /source/target/release/gqa2mla /usr/local/bin/gqa2mla
# The command looks for ONNX Runtime in the active environment.
ENV VIRTUAL_ENV=/usr/local
WORKDIR /models
ENTRYPOINT ["gqa2mla"]
