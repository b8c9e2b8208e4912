# The agent's image: the program, what it runs, what those are linked against, and nothing else. No shell.
#
#   docker build --tag sluice .
#
# compiles the program. One that was compiled against the C library of BASE, or an older one, is taken as it is:
#
#   docker build --tag sluice --target prebuilt --build-arg PROGRAM=target/image/sluice .
#
# BASE is Debian with apt, or one that has all PACKAGES; then nothing is fetched.

ARG BASE=docker.io/library/debian:bookworm-slim
ARG RUST=docker.io/library/rust:1.95-bookworm

FROM ${BASE} AS parts
# nft is what the agent works with. sysctl is for the way back to kube-proxy. All others are for `sluice cleanup --kube-proxy`.
ARG PROGRAMS="nft sysctl ip ipset ipvsadm xtables-legacy-multi"
ARG PACKAGES="nftables procps iproute2 ipset ipvsadm iptables ca-certificates"
RUN set -eu; \
    command -v $PROGRAMS >/dev/null && test -s /etc/ssl/certs/ca-certificates.crt || { \
        apt-get update; \
        apt-get install --yes --no-install-recommends $PACKAGES; \
    }; \
    # Takes a file, and what it is linked against.
    take() { \
        for file in "$1" $(ldd "$1" | grep --only-matching '/[^ )]*'); do \
            mkdir -p "/image${file%/*}"; \
            cp --dereference "$file" "/image$file"; \
        done; \
    }; \
    for program in $PROGRAMS; do take "$(command -v $program)"; done; \
    for name in iptables-legacy-save iptables-legacy-restore ip6tables-legacy-save ip6tables-legacy-restore; do \
        ln -s xtables-legacy-multi "/image/usr/sbin/$name"; \
    done; \
    # iptables loads its matches and targets; the program needs the first two, and the others to look up names.
    for file in $(find /usr/lib/ -path '*/xtables/lib*.so' -o -name 'libgcc_s.so.1' -o -name 'libm.so.6' \
        -o -name 'libresolv.so.2' -o -name 'libnss_files.so.2' -o -name 'libnss_dns.so.2'); do \
        take "$file"; \
    done; \
    mkdir -p /image/etc/ssl/certs /image/run /image/tmp; \
    cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/; \
    echo 'hosts: files dns' >/image/etc/nsswitch.conf; \
    echo 'root:x:0:0:root:/:/nonexistent' >/image/etc/passwd; \
    for licence in /usr/share/doc/*/copyright; do \
        mkdir -p "/image${licence%/*}"; \
        cp --dereference "$licence" "/image$licence"; \
    done

FROM scratch AS node
COPY --from=parts /image/ /
ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Root, since Kubernetes gives capabilities to nobody else; which ones is the manifest's matter.
ENTRYPOINT ["/usr/bin/sluice"]
CMD ["agent", "--help"]
LABEL org.opencontainers.image.title="Sluice" \
      org.opencontainers.image.description="Kubernetes node proxy: makes every Service address lead to a healthy endpoint" \
      org.opencontainers.image.source="https://github.com/sluice-proxy/sluice" \
      org.opencontainers.image.documentation="https://github.com/sluice-proxy/sluice/blob/main/README.md" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM node AS prebuilt
ARG PROGRAM=target/image/sluice
COPY ${PROGRAM} /usr/bin/sluice

FROM ${RUST} AS build
WORKDIR /src
COPY . .
RUN cargo build --profile dist --locked --package sluice && strip target/dist/sluice

FROM node
COPY --from=build /src/target/dist/sluice /usr/bin/sluice
