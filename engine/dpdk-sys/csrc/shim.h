/* What Rust sees of DPDK: plain numbers and opaque pointers. src/lib.rs has the same declarations; both say what they mean there. */
#ifndef PATRONUS_DPDK_SHIM_H
#define PATRONUS_DPDK_SHIM_H

#include <stddef.h>
#include <stdint.h>

#define PD_NAME 64

struct pd_memory {
	void *frames;
	size_t frames_len;
	size_t stride;
	size_t page;
	void *headers;
	size_t headers_len;
	uint32_t count;
	uint32_t headroom;
	uint32_t room;
	uintptr_t lines;
	size_t line_stride;
	uint32_t (*take)(void *cache, uint32_t *frames, uint32_t count);
	void (*give)(void *cache, const uint32_t *frames, uint32_t count);
};

struct pd_info {
	char name[PD_NAME];
	char driver[PD_NAME];
	uint8_t mac[6];
	uint16_t max_queues;
	uint16_t min_mtu;
	uint16_t max_mtu;
	int32_t numa;
	uint32_t rx_offloads;
	uint32_t tx_offloads;
	uint8_t hashes;
};

struct pd_setup {
	uint16_t queues;
	uint16_t descriptors;
	uint16_t mtu;
	uint8_t promiscuous;
};

struct pd_link {
	uint32_t mbps;
	uint8_t up;
	uint8_t full_duplex;
};

struct pd_stats {
	uint64_t rx_packets, rx_bytes, rx_missed, rx_errors, rx_no_frame;
	uint64_t tx_packets, tx_bytes, tx_errors;
};

struct pd_worker {
	void *cache;
	uint32_t number;
};

struct pd_packet {
	uintptr_t line;
	uint64_t place;
};

struct pd_frame {
	uint32_t frame;
	uint32_t len;
	uint16_t offset;
	uint16_t flags;
};

struct pd_queue {
	uint16_t port;
	uint16_t queue;
	uint32_t longest;
	uint32_t checksums;
};

struct pd_received {
	struct pd_packet *packets;
	struct pd_frame *frames;
	uint64_t bytes;
	uint16_t count;
	uint16_t unusual;
};

struct pd_sent {
	uint64_t bytes;
	uint16_t packets;
};

struct pd_asked {
	uint8_t ip, udp, version, l2_len, l3_len;
};

int pd_init(int argc, char **argv);
const char *pd_version(void);
int pd_pool(const struct pd_memory *memory);
size_t pd_header_size(void);
int pd_is_placed(uint32_t frame);
uint32_t pd_held(void);
int pd_attach(const char *bus, const char *device, const char *arguments);
int pd_detach(const char *bus, const char *device);
int pd_find(const char *device, uint16_t *port);
int pd_info(uint16_t port, struct pd_info *info);
int pd_setup(uint16_t port, struct pd_setup *setup, const char **step);
int pd_close(uint16_t port);
int pd_link(uint16_t port, struct pd_link *link);
int pd_stats(uint16_t port, struct pd_stats *stats);
int pd_set_mtu(uint16_t port, uint16_t mtu);
int pd_is_removed(uint16_t port);
uint32_t pd_open_cache(void);
void pd_empty_cache(struct pd_worker worker);
void pd_close_cache(uint32_t number);
void pd_receive(uint16_t port, uint16_t queue, struct pd_worker worker, struct pd_received *received);
uint32_t pd_gather(uint32_t frame, struct pd_worker worker, void *to, uint32_t room);
uint16_t pd_send(const struct pd_queue *queue, struct pd_worker worker, const struct pd_packet *packets, uint16_t count, struct pd_sent *sent);
uint16_t pd_send_pieces(const struct pd_queue *queue, struct pd_worker worker, const struct pd_frame *pieces, uint16_t count);
void pd_look(uint32_t frame, struct pd_asked *asked);

#endif
