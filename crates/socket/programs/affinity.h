/* Session affinity: a client keeps its endpoint. The relay decides, and here it is followed: a client that is not known
 * is its. */
#pragma once

#include "pick.h"

#define NSEC_PER_MSEC 1000000ull

/* Where a source is, if it is known at all. */
static __always_inline struct sources *sources_of(const struct source *source)
{
	/* Namespace and service. Of a product the upper bits depend on all others. */
	__u32 hash = hash_words(source, 7);
	__u32 place = (__u64)hash * SOURCE_PLACES >> 32;
	return bpf_map_lookup_elem(&sources, &place);
}

static __always_inline __u32 check_of_source(const struct source *source)
{
	return hash_words(source, 11);
}

/* What is in a place, if it is for this namespace and service and nobody is just writing it. */
static __always_inline bool is_source(struct source *found, const struct source *at, const struct source *wanted)
{
	const volatile __u64 *words = (const volatile __u64 *)at;
	__u64 *copy = (__u64 *)found;
	for (int i = 0; i < sizeof(*found) / 8; i++)
		copy[i] = words[i];
	return found->namespace == wanted->namespace && same(&found->service, &wanted->service) &&
	       found->check == check_of_source(found);
}

/* What a socket will come from that connects there, in this namespace. */
static __always_inline bool find_source(__u32 ip[4], __u64 namespace, const struct address *to)
{
	struct source wanted = { .namespace = namespace, .service = *to }, found;
	struct sources *known = sources_of(&wanted);
	if (!known)
		return false;
	for (int i = 0; i < SOURCES_TOGETHER; i++) {
		if (!is_source(&found, &known->at[i], &wanted))
			continue;
		ip[0] = found.ip[0];
		ip[1] = found.ip[1];
		ip[2] = found.ip[2];
		ip[3] = found.ip[3];
		return true;
	}
	return false;
}

/* The socket has just been given its address, and the relay is about to hear of it. */
static __always_inline void learn_source(struct bpf_sock_ops *ctx, struct bpf_sock *sk, const struct conn *conn)
{
	struct source source = { .namespace = bpf_get_netns_cookie(ctx), .service = conn->service }, found;
	struct sources *known = sources_of(&source);
	if (!known)
		return;
	source_of(source.ip, sk);
	source.check = check_of_source(&source);
	/* In its own place, or one that is nobody's, or any. */
	__u32 at = bpf_get_prandom_u32() % SOURCES_TOGETHER;
	for (int i = SOURCES_TOGETHER - 1; i >= 0; i--) {
		if (!known->at[i].service.port)
			at = i;
	}
	/* Of several the one that is found: two CPUs may have begun at the same time. */
	for (int i = SOURCES_TOGETHER - 1; i >= 0; i--) {
		if (is_source(&found, &known->at[i], &source))
			at = i;
	}
	known->at[at % SOURCES_TOGETHER] = source;
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
static __always_inline bool follow(struct affinity_key *key, __u32 rule, const struct address *to, const struct meta *m,
				   struct choice *choice)
{
	__u32 at = rule & ~(SET_RANDOM | SET_KEPT);
	struct keeping *found = bpf_map_lookup_elem(&keeping, &at);
	if (!found)
		return false;
	__u64 affinity = *(volatile __u64 *)&found->word;
	key->number = affinity >> 32;
	struct affinity *known = bpf_map_lookup_elem(&affinities, key);
	if (!known)
		return false;
	/* The element may be taken for another client while we read it: then what comes out is no incarnation. */
	__u64 word = *(volatile __u64 *)known;
	__u32 incarnation = (__u32)(word >> 32) ^ hash_of(key);
	choice->id = word;
	choice->endpoint = bpf_map_lookup_elem(&endpoints, &choice->id);
	if (!choice->endpoint)
		return false;
	/* In one piece: it may be given to another one, which has not left. */
	__u64 is = *(volatile __u64 *)&choice->endpoint->port;
	__u16 flags = is >> 16;
	if (is >> 32 != incarnation || flags & ENDPOINT_LEFT || !(flags & ENDPOINT_V4) == is_v4(to->ip))
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
