/* Session affinity: a client keeps its endpoint. The relay decides, and here it is followed: a client that is not known
 * is its. */
#pragma once

#include "pick.h"

#define NSEC_PER_MSEC 1000000ull

/* What a socket will come from that connects there, in this namespace. */
static __always_inline bool find_source(__u32 ip[4], __u64 namespace, const struct address *to)
{
	struct source_key key = { .namespace = namespace, .port = to->port };
	key.ip[0] = to->ip[0];
	key.ip[1] = to->ip[1];
	key.ip[2] = to->ip[2];
	key.ip[3] = to->ip[3];
	struct source *source = bpf_map_lookup_elem(&sources, &key);
	if (!source)
		return false;
	ip[0] = source->ip[0];
	ip[1] = source->ip[1];
	ip[2] = source->ip[2];
	ip[3] = source->ip[3];
	return true;
}

/* The socket has just been given its address, and the relay is about to hear of it. */
static __always_inline void learn_source(struct bpf_sock_ops *ctx, struct bpf_sock *sk, const struct conn *conn)
{
	struct source_key key = { .namespace = bpf_get_netns_cookie(ctx), .port = conn->service.port };
	key.ip[0] = conn->service.ip[0];
	key.ip[1] = conn->service.ip[1];
	key.ip[2] = conn->service.ip[2];
	key.ip[3] = conn->service.ip[3];
	struct source source;
	source_of(source.ip, sk);
	bpf_map_update_elem(&sources, &key, &source, BPF_ANY);
}

/* Has it be learnt what the socket comes from, once that is known. */
static __always_inline void ask_source(struct bpf_sock *sk, const struct address *to)
{
	struct conn *conn = bpf_sk_storage_get(&conns, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!conn)
		return;
	*conn = (struct conn){ .service = *to };
}

/* The endpoint that the relay has chosen for the client, if that is no longer ago than clients keep one, and nothing has to
 * be found out about it. */
static __always_inline bool follow(struct affinity_key *key, __u64 affinity, const struct address *to,
				   const struct meta *m, struct choice *choice)
{
	key->number = affinity >> 32;
	struct affinity *known = bpf_map_lookup_elem(&affinities, key);
	if (!known)
		return false;
	/* The element may be taken for another client while we read it: then what comes out is no incarnation. */
	__u64 word = *(volatile __u64 *)known;
	__u32 incarnation = (__u32)(word >> 32) ^ hash_of(key);
	choice->id = word;
	choice->endpoint = bpf_map_lookup_elem(&endpoints, &choice->id);
	if (!choice->endpoint || choice->endpoint->incarnation != incarnation)
		return false;
	__u16 flags = choice->endpoint->flags;
	if (flags & ENDPOINT_LEFT || !(flags & ENDPOINT_V4) == is_v4(to->ip))
		return false;
	__u64 now = bpf_ktime_get_ns(), timeout = (affinity & 0xffffffff) * NSEC_PER_MSEC;
	/* Others may have written a moment that is later than ours. */
	if ((__s64)(now - *(volatile __u64 *)&known->last_ns) >= (__s64)timeout)
		return false;
	if (is_doubtful(choice->endpoint) && is_agent_alive(m))
		return false;
	*(volatile __u64 *)&known->last_ns = now;
	return true;
}
