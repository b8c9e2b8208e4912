/* How the maps are laid out. The Rust side is socket-maps/src/layout.rs and socket/src/layout.rs; a test compares both by BTF. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

/* An address and a port, in network order. An IPv4 address is mapped into IPv6. */
struct address {
	__u32 ip[4];
	__u16 port;
	__u16 pad;
};

struct frontend_key {
	__u32 ip[4];
	__u16 port;
	__u8 protocol;
	__u8 pad;
};

enum verdict {
	VERDICT_RELAY = 0,
	VERDICT_BALANCE = 1,
	VERDICT_REFUSE = 2,
};

/* What becomes of the node's own connections, and of pods'. Each is an aligned word, so it is read in one piece:
 * check:22 | half of the service's number:16 | verdict:2 | set:24. `check` belongs to the key: see frontend(). The service is for
 * the agent that takes over; the node's has its lower half. */
struct frontend_value {
	__u64 node;
	__u64 pod;
};

#define OUTCOME_CHECK_SHIFT 42
#define OUTCOME_VERDICT_SHIFT 24
#define OUTCOME_VERDICT 3
#define OUTCOME_SET 0xffffff

/* The bits of a set's rule. */
#define SET_RANDOM (1u << 31) /* any endpoint, with equal chances, instead of turns */
#define SET_KEPT (1u << 30) /* clients keep their endpoints: how, is in the element of `keeping` that the rest says */

struct set {
	__u64 desc; /* base:32 | count:16 | rotation:16 */
	__u32 cursor; /* begins again: then one turn is not whose it was */
	__u32 rule;
};

/* How the clients of a set keep their endpoints, one aligned word: number:32 | timeout in ms:32; 0 is nobody's. */
struct keeping {
	__u64 word;
};

enum endpoint_flags {
	ENDPOINT_V4 = 1,
	ENDPOINT_UNPROVEN = 2,
	/* Of UDP. For the agent that takes the maps over; the bits above say whose it is. */
	ENDPOINT_FLOWS = 4,
	/* Of TCP: no set has it any more, so no client keeps it. */
	ENDPOINT_LEFT = 8,
};

struct endpoint {
	__u32 ip[4];
	__u16 port;
	__u16 flags;
	__u32 incarnation;
	__u64 failures; /* 0: none since it last served; see FAILURES_COUNT */
};

/* How many failures there were, 7 at most; the other bits are until when the endpoint is passed over where there is
 * no relay, in nanoseconds of CLOCK_MONOTONIC. */
#define FAILURES_COUNT 7ull

/* The agent looks often enough to see that a number of 32 bits begins again. */
struct account {
	__u32 connections;
	__u32 closed;
	__u32 failed;
	__u32 served; /* when a connection was last established: see SERVED_SHIFT */
	__u64 bytes_to;
	__u64 bytes_from;
	__u64 duration_us;
};

/* Of nanoseconds of CLOCK_MONOTONIC: a millisecond or so. The numbers begin again after seven weeks. */
#define SERVED_SHIFT 20

/* How long connections last, in microseconds: the bounds that the agent has for those that it relays. A test compares. */
#define LIFE_BOUNDS_US(X) X(10000) X(100000) X(1000000) X(10000000) X(60000000) X(600000000) X(3600000000) X(86400000000)
/* And one for what lasts longer. */
#define LIVES 9

/* What is counted of all endpoints together, by CPU, so that no two contend for a line. */
struct totals {
	__u64 aborted;
	__u64 timeouts;
	__u64 lives[LIVES];
	__u64 pad[5];
};

#define STRIPES 64

/* Whose UDP sockets are decided about when they connect: somebody has to end those whose endpoint goes. And whose
 * sockets are decided about at all. */
enum meta_flags {
	META_NODE_UDP = 1, /* those of the node's own network */
	META_PODS_UDP = 2, /* all others */
	META_KNOWN_ONLY = 4, /* of others only those in the map of namespaces, while an agent lives */
};

struct meta {
	__u64 layout;
	__u64 host_cookie;
	__u64 heartbeat_ns;
	__u32 relay_mark;
	__u32 sidecar_ports; /* two, in network order; 0 is none */
	__u64 flow_idle_ns; /* 0: for ever */
	__u32 flags;
	__u32 pad;
};

/* Slots are endpoint ids. An array's element takes at least 8 bytes, so they are kept by the cache line. */
#define SLOTS_PER_LINE 16

struct slot_line {
	__u32 ids[SLOTS_PER_LINE];
};

/* A client of a set whose clients keep their endpoints, by the set's number for that. */
struct affinity_key {
	__u32 ip[4];
	__u32 number;
};

/* Which endpoint it has, as the relay has chosen: one aligned word, so it is read in one piece; and when it last connected,
 * in nanoseconds of CLOCK_MONOTONIC. `check` is the endpoint's incarnation, and a hash of the key, by exclusive or: see
 * follow(). */
struct affinity {
	__u32 id;
	__u32 check;
	__u64 last_ns;
};

/* What sockets of a network namespace come from that connect to an address: who is asked when one connects does not know it
 * yet. Anybody may write it while it is read: then `check`, a hash of all else, is not what it has to be. */
struct source {
	__u64 namespace;
	struct address service;
	__u32 ip[4];
	__u32 check;
};

/* A source is in the place that a hash of namespace and service says, or one of the next three there. */
#define SOURCES_TOGETHER 4
#define SOURCE_PLACES 512

struct sources {
	struct source at[SOURCES_TOGETHER];
};

/* What a connected socket was translated to. Where `since_ns` is 0 it was not: `service` is where it is about to connect
 * to, by way of the relay, from an address that is to be remembered. */
struct conn {
	struct address service;
	struct address endpoint;
	__u32 id;
	__u32 incarnation;
	__u64 since_ns;
};

/* What an unconnected datagram socket was translated to, for one service. */
struct flow {
	struct address service;
	struct address endpoint;
	__u32 id;
	__u32 incarnation;
	/* When something was sent, or received by a call that asks from whom (recvfrom(2), recvmsg(2)): no program runs for
	 * recv(2) or read(2). Of CLOCK_MONOTONIC_COARSE. */
	__u64 last_ns;
};

/* Flows that go on, and those whose answers may still come: as many as the kernel has room for in 512 bytes, with what it
 * keeps itself. The next size is 1024. */
#define FLOWS_CURRENT 4
#define FLOWS_OLD 3

struct flows {
	struct bpf_spin_lock lock;
	__u32 last; /* what was sent to last */
	__u32 old; /* which of the old ones the next one takes the place of; past them it is the first */
	__u32 pad;
	struct flow flow[FLOWS_CURRENT + FLOWS_OLD];
};

/* What the iterator writes of a socket. */
struct translated {
	__u64 namespace;
	__u64 cookie;
	struct conn conn;
	__u32 local[4];
	__u16 local_port;
	__u8 protocol; /* that of MPTCP ends in that of TCP */
	__u8 family;
	__u32 device; /* what it is bound to, or 0 */
};

/* No map has it, so BTF does not. A test reads these lines instead. */
#define TRANSLATED_HAS(FIELD, AT) _Static_assert(__builtin_offsetof(struct translated, FIELD) == AT, #FIELD)
TRANSLATED_HAS(namespace, 0);
TRANSLATED_HAS(cookie, 8);
TRANSLATED_HAS(conn, 16);
TRANSLATED_HAS(local, 72);
TRANSLATED_HAS(local_port, 88);
TRANSLATED_HAS(protocol, 90);
TRANSLATED_HAS(family, 91);
TRANSLATED_HAS(device, 92);
_Static_assert(sizeof(struct translated) == 96, "size");
