// How a function is marked that a CPU's vector loop and a lane of a GPU compile from one text.
#pragma once

#ifndef MCR_ISA
#error "compile with -DMCR_ISA=<namespace> and, for the host, -DMCR_VEC_BYTES=<bytes of a vector>"
#endif

#if defined(__CUDACC__)
// On a GPU everything is inlined, and loops over a row's steps are unrolled: then the tiles are
// registers.
#define MCR_INLINE __device__ __forceinline__
#define MCR_FN __device__ __forceinline__
#define MCR_NOINLINE __device__ __forceinline__
#define MCR_UNROLL _Pragma("unroll")
#else
// The compiler's own judgement calls them from inside the loops once a loop holds several.
#define MCR_INLINE __attribute__((always_inline)) inline
#define MCR_FN
#define MCR_NOINLINE __attribute__((noinline))
#define MCR_UNROLL
#endif
