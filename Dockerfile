# The files of `make image` as an image, for who has an engine rather than Rust: docker build .
# The files and their list are made by the same program; that the rest of this page says the same is tested (services/image). Our tests have no
# engine, so that nobody but its users builds it.
# The digest is that of the list of all machines, as of the last image with this compiler: both change together.
FROM rust:1.95.0-slim-bookworm@sha256:d7482085ff5b415f84dba5647ae71606650bdef00db7aeb69f4b3d170c3e4082 AS build
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /mailbell
COPY . .
RUN make image-files

FROM scratch
COPY --from=build /mailbell/target/image-files/ /
ENV PATH=/usr/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/usr/bin/mailbell"]
