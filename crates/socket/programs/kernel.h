/* What the programs need to know of the kernel's own types; where the fields are, the loader finds out. */
#pragma once

#include <linux/types.h>

#define KERNEL_TYPE __attribute__((preserve_access_index))

struct net {
	__u64 net_cookie;
} KERNEL_TYPE;

typedef struct {
	struct net *net;
} KERNEL_TYPE possible_net_t;

struct in6_addr___kernel {
	union {
		__u32 u6_addr32[4];
	} in6_u;
} KERNEL_TYPE;

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	__u16 skc_family;
	volatile unsigned char skc_state;
	int skc_bound_dev_if;
	possible_net_t skc_net;
	struct in6_addr___kernel skc_v6_daddr;
	struct in6_addr___kernel skc_v6_rcv_saddr;
} KERNEL_TYPE;

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	int sk_err;
	__u8 sk_shutdown;
} KERNEL_TYPE;

struct tcp_sock {
	__u32 packets_out;
} KERNEL_TYPE;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} KERNEL_TYPE;

/* The context of an iterator over storage: a fixed layout. */
struct storage_iterator {
	struct bpf_iter_meta *meta;
	void *map;
	struct sock *sk;
	struct conn *value;
};
