// Products with packed weights. Weights are packed in panels of 16 outputs (llmctl/infer/packed/linear.py packs them);
// the layout is the same for every instruction set.
//
// float32, bfloat16 and float16: [panel][in][16]. int8: [panel][in / 4][16][4]. int4: [panel][in / 8][16][4], where the low
// halves of four bytes are the codes + 8 of the first four of eight inputs and the high halves those of the other four.
// The inputs of the integer kinds are padded with codes 0 to a multiple of 32. Scales and zeros, in float32 or float16:
// [panel][group][16]. Inputs of the integer kinds may have an order and factors, which are applied where rows are
// quantized.
//
// For the integer kinds the rows are quantized too: each block of 32 values to int8 with a scale of max |x| / 127. The
// result of a row is therefore bit-identical whatever other rows are in the batch.
//
// Rows are copied into tiles of up to HEIGHT rows; a weight is read into the L1 cache in chunks, and each chunk is
// multiplied with all tiles of a band of rows.

#pragma once

#include <stdint.h>
#include <string.h>

#include "linear_float.h"
#include "linear_int.h"
#include "memory.h"
#include "packed_weight.h"
#include "simd.h"
#include "structs.h"
#include "team.h"

namespace {

const int64_t BAND = 256;             // rows of one pass over the weight
const int64_t MAX_PANELS = 8;         // panels that a thread takes at once: they share the rows in its L2 cache
const int64_t MAX_WEIGHTS = 1 << 19;  // weights that a thread takes at once where it reads them sequentially
const int64_t L2_BYTES = 1 << 18;     // rows of up to this size stay in the L2 cache while any panel is read

// Bytes of the scratch buffer that `linear` needs for a number of rows.
INLINE int64_t linear_scratch_bytes(int64_t rows, int64_t in) {
  return 4 * ((rows < BAND ? rows : BAND) + 16) * round_up(in, QUANT_BLOCK) + 1024;
}

// Multiplies one panel of a chunk of inputs with all tiles of a band.
template <class RowTiles, int H>
INLINE void tiles_of_panel(const Linear& w, const RowTiles& rows, int64_t panel, int64_t from, int64_t count, float* y,
                           int64_t y_row) {
  int64_t columns = w.out - panel * PANEL;
  if (columns > RowTiles::PANELS * PANEL) columns = RowTiles::PANELS * PANEL;
  typename RowTiles::Chunk chunk;
  rows.read(w, panel, from, count, &chunk);
  for (int64_t tile = 0; tile * H < rows.count; ++tile) {
    float* to = y + tile * H * y_row + panel * PANEL;
    int64_t height = rows.count - tile * H < H ? rows.count - tile * H : H;
    if (height == H && columns == RowTiles::PANELS * PANEL) {
      rows.template multiply<H>(w, chunk, panel, tile, from, count, to, y_row);
      continue;
    }
    // A tile that crosses the edge of y is computed in a buffer.
    alignas(64) float edge[H * RowTiles::PANELS * PANEL] = {};
    for (int64_t r = 0; r < height; ++r)
      memcpy(edge + r * RowTiles::PANELS * PANEL, to + r * y_row, (size_t)columns * 4);
    rows.template multiply<H>(w, chunk, panel, tile, from, count, edge, RowTiles::PANELS * PANEL);
    for (int64_t r = 0; r < height; ++r)
      memcpy(to + r * y_row, edge + r * RowTiles::PANELS * PANEL, (size_t)columns * 4);
  }
}

// This thread's share of the panels for a band of rows in tiles of H.
template <class RowTiles, int H>
__attribute__((noinline)) void panels_of_band(Team& team, const Linear& w, const RowTiles& rows, float* y,
                                              int64_t y_row) {
  int64_t panels = (w.out + PANEL - 1) / PANEL, fair = panels / (4 * team.threads);
  bool rows_in_l2 = rows.count * w.in * RowTiles::BYTES <= L2_BYTES;  // then weights are read sequentially
  int64_t max_group = rows_in_l2 ? MAX_WEIGHTS / (w.in * PANEL) : MAX_PANELS;
  int64_t group = round_up(fair < max_group ? fair : max_group, RowTiles::PANELS);
  if (group < RowTiles::PANELS) group = RowTiles::PANELS;
  for (int64_t first; (first = team.take() * group) < panels;) {
    int64_t end = first + group < panels ? first + group : panels;
    int64_t begin = first * PANEL, width = (end * PANEL < w.out ? end * PANEL : w.out) - begin;
    for (int64_t r = 0; r < rows.count; ++r) {
      float* to = y + r * y_row + begin;
      if (w.bias)
        memcpy(to, w.bias + begin, (size_t)width * sizeof(float));
      else
        memset(to, 0, (size_t)width * sizeof(float));
    }
    int64_t chunk = rows.inputs_of_chunk(w);
    int64_t block = rows_in_l2 ? RowTiles::PANELS : end - first;
    for (int64_t start = first; start < end; start += block)
      for (int64_t from = 0; from < w.in; from += chunk)
        for (int64_t panel = start; panel < start + block && panel < end; panel += RowTiles::PANELS)
          tiles_of_panel<RowTiles, H>(w, rows, panel, from, w.in - from < chunk ? w.in - from : chunk, y, y_row);
  }
}

template <class RowTiles, int H>
struct DispatchHeight {
  static INLINE void run(Team& team, const Linear& w, const RowTiles& rows, float* y, int64_t y_row) {
    if (rows.height == H)
      panels_of_band<RowTiles, H>(team, w, rows, y, y_row);
    else
      DispatchHeight<RowTiles, H - 1>::run(team, w, rows, y, y_row);
  }
};
template <class RowTiles>
struct DispatchHeight<RowTiles, 0> {
  static INLINE void run(Team&, const Linear&, const RowTiles&, float*, int64_t) {}
};

template <class RowTiles>
INLINE void bands(Team& team, const Linear& w, const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row,
                  void* scratch) {
  for (int64_t first = 0; first < rows; first += BAND) {
    int64_t count = rows - first < BAND ? rows - first : BAND;
    RowTiles band(count, w, scratch);
    band.fill(team, x + first * x_row, x_row, w);
    team.wait();
    DispatchHeight<RowTiles, RowTiles::HEIGHT>::run(team, w, band, y + first * y_row, y_row);
    team.wait();
  }
}

// y[rows, out] = x[rows, in] w + bias. Called by every thread of the team with the same arguments; ends with
// team.wait(). scratch: linear_scratch_bytes(rows, in) bytes, shared by the team.
inline void linear(Team& team, const Linear& w, const float* x, int64_t rows, int64_t x_row, float* y, int64_t y_row,
                   void* scratch) {
  if (w.kind == JOINED) {
    const Linear* part = (const Linear*)w.data;
    for (int64_t at = 0; at < w.out; at += (part++)->out) linear(team, *part, x, rows, x_row, y + at, y_row, scratch);
  } else if (rows == 1 && w.kind == F32) {
    linear_row<float>(team, w, x, y);
    team.wait();
  } else if (rows == 1 && w.kind == BF16) {
    linear_row<uint16_t>(team, w, x, y);
    team.wait();
  } else if (rows == 1 && w.kind == F16) {
    linear_row<Half>(team, w, x, y);
    team.wait();
#if WIDTH > 4
  } else if (w.kind == INT8) {
    bands<IntRows<INT8>>(team, w, x, rows, x_row, y, y_row, scratch);
  } else if (w.kind == INT4) {
    bands<IntRows<INT4>>(team, w, x, rows, x_row, y, y_row, scratch);
#endif
  } else {
    bands<FloatRows>(team, w, x, rows, x_row, y, y_row, scratch);
  }
}

}  // namespace
