/* roofline.h: loops at the limits of the machine; see roofline.go. */
#ifndef NANOCHAT_KERNELS_ROOFLINE_H
#define NANOCHAT_KERNELS_ROOFLINE_H

#include <stdint.h>

int64_t nc_peak_vpdpbusd512(int64_t n);
int64_t nc_peak_fma512(int64_t n);
int64_t nc_peak_vdpbf16ps512(int64_t n);
int64_t nc_peak_vpdpbusd256(int64_t n);
int64_t nc_peak_vpmaddubsw256(int64_t n);
int64_t nc_peak_fma256(int64_t n);
int64_t nc_peak_sdot(int64_t n);
int64_t nc_peak_fma128(int64_t n);
int64_t nc_read512(const uint8_t *p, int64_t n);
int64_t nc_read256(const uint8_t *p, int64_t n);
int64_t nc_read128(const uint8_t *p, int64_t n);

#endif
