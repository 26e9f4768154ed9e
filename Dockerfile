# The files of `make image` as an image, for who has an engine rather than Rust: docker build .
# The files and their list are made by the same program; that the rest of this page says the same is tested (services/image).
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /mailbell
COPY . .
RUN make image-files

FROM scratch
COPY --from=build /mailbell/target/image-files/ /
ENV PATH=/usr/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/usr/bin/mailbell"]
