/* The maps. All of them are pinned; how large they are is up to who loads them. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

/* Not preallocated: memory by use. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct frontend_key);
	__type(value, struct frontend_value);
} frontends SEC(".maps");

/* Network namespaces that are pods', by cookie: 1, or 0 for those whose sockets are left alone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u8);
} namespaces SEC(".maps");

/* What the relay has decided for this node's clients. Not preallocated. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

#define MAPPED_ARRAY(name, element)                    \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_ARRAY);      \
		__uint(map_flags, BPF_F_MMAPABLE);     \
		__uint(max_entries, 1);                \
		__type(key, __u32);                    \
		__type(value, element);                \
	} name SEC(".maps")

MAPPED_ARRAY(sets, struct set);
MAPPED_ARRAY(keeping, struct keeping);
/* Whoever is not in it is the relay's once more. */
MAPPED_ARRAY(sources, struct sources);
MAPPED_ARRAY(slots, struct slot_line);
MAPPED_ARRAY(endpoints, struct endpoint);
MAPPED_ARRAY(accounts, struct account);
MAPPED_ARRAY(totals, struct totals);
MAPPED_ARRAY(meta, struct meta);

#define SOCKET_STORAGE(name, element)                  \
	struct {                                       \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE); \
		__uint(map_flags, BPF_F_NO_PREALLOC);  \
		__type(key, int);                      \
		__type(value, element);                \
	} name SEC(".maps")

SOCKET_STORAGE(conns, struct conn);
SOCKET_STORAGE(flows, struct flows);
