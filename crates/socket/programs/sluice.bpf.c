/* The programs of socket mode: they translate the address of a service to that of an endpoint when a socket
 * connects or sends, so that no packet to a service ever exists. One object, one translation unit. */
#include "census.h"
#include "connect.h"
#include "datagram.h"
#include "health.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";
