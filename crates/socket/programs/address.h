/* Addresses of hooks, of both families, as one type. */
#pragma once

#include <stdbool.h>
#include <bpf/bpf_endian.h>

#include "layout.h"

#define AF_INET 2
#define AF_INET6 10

static __always_inline bool same(const struct address *a, const struct address *b)
{
	return a->port == b->port && a->ip[3] == b->ip[3] && a->ip[2] == b->ip[2] &&
	       a->ip[1] == b->ip[1] && a->ip[0] == b->ip[0];
}

static __always_inline bool is_v4(const __u32 ip[4])
{
	return ip[0] == 0 && ip[1] == 0 && ip[2] == bpf_htonl(0xffff);
}

static __always_inline void read4(struct address *to, struct bpf_sock_addr *ctx)
{
	*to = (struct address){ .ip = { 0, 0, bpf_htonl(0xffff), ctx->user_ip4 }, .port = ctx->user_port };
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct address *from)
{
	ctx->user_ip4 = from->ip[3];
	ctx->user_port = from->port;
}

static __always_inline void read6(struct address *to, struct bpf_sock_addr *ctx)
{
	*to = (struct address){ .port = ctx->user_port };
	to->ip[0] = ctx->user_ip6[0];
	to->ip[1] = ctx->user_ip6[1];
	to->ip[2] = ctx->user_ip6[2];
	to->ip[3] = ctx->user_ip6[3];
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct address *from)
{
	ctx->user_ip6[0] = from->ip[0];
	ctx->user_ip6[1] = from->ip[1];
	ctx->user_ip6[2] = from->ip[2];
	ctx->user_ip6[3] = from->ip[3];
	ctx->user_port = from->port;
}

/* Whether a socket is bound to a loopback address: from there nothing leaves the node. */
static __always_inline bool bound_to_loopback(struct bpf_sock *sk)
{
	if (sk->family == AF_INET)
		return (bpf_ntohl(sk->src_ip4) >> 24) == 127;
	__u32 ip[4] = { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] };
	if (is_v4(ip))
		return (bpf_ntohl(ip[3]) >> 24) == 127;
	return ip[0] == 0 && ip[1] == 0 && ip[2] == 0 && ip[3] == bpf_htonl(1);
}
