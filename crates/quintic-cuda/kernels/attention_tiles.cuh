// Attention on matrix units: 64 queries of one row and one head a block, 64 keys at a time, the
// softmax on the way (Dao 2023, FlashAttention-2), the position bias from a strip in shared
// memory instead of a matrix in global memory.
//
// A warp owns 16 queries. With g = lane / 4 and t = lane % 4, a lane holds of every 16 x 8 block
// of scores, and of the result, the columns 2t and 2t + 1 of the rows g and g + 8.
#pragma once

#include "attention_plain.cuh"

#define TILE_QUERIES 64u
#define TILE_KEYS 64u
#define TILE_THREADS 128u

// Where 16 bytes of a tile of keys or values stand: the chunks of each row are turned by its
// number, so that eight rows' same chunks lie in different banks.
template <typename T, u32 WIDTH> QUINTIC_DEVICE T *tile_chunk(T *tile, u32 row, u32 chunk) {
    return tile + row * WIDTH + (chunk ^ (row & 7u)) * 8u;
}

template <typename T, u32 WIDTH> struct KeyTiles {
    T *keys;   // [2][TILE_KEYS, WIDTH]
    T *values; // [2][TILE_KEYS, WIDTH]
    const T *from; // keys of the row's first token and this head
    u64 stride, inner;
    u32 length;

    // Begins to fetch TILE_KEYS keys and values; zeros behind the end of the row.
    QUINTIC_DEVICE void fetch(u32 tile) const {
        const u32 chunks = WIDTH / 8u, stage = (tile & 1u) * TILE_KEYS * WIDTH;
        for (u32 i = thread_index(); i < TILE_KEYS * chunks; i += TILE_THREADS) {
            const u32 row = i / chunks, chunk = i % chunks, key = tile * TILE_KEYS + row;
            const bool real = key < length;
            const T *source = from + (u64)(real ? key : 0u) * stride + chunk * 8u;
            copy16_async(tile_chunk<T, WIDTH>(keys + stage, row, chunk), source, real);
            copy16_async(tile_chunk<T, WIDTH>(values + stage, row, chunk), source + inner, real);
        }
        copy_group();
    }
};

// Bytes of shared memory: two stages of keys and values, and the strip of bias.
//   2 * 2 * TILE_KEYS * WIDTH * 2 + (2 * reach + 1) * 4
template <typename T, u32 WIDTH> QUINTIC_DEVICE void attend_tiles(const AttendTiles &p) {
    const u32 thread = thread_index(), lane = thread % WARP, warp = thread / WARP;
    const u32 g = lane / 4u, t = lane % 4u;
    const u32 head = block_y();
    const u64 inner = (u64)p.heads * WIDTH, stride = 3u * inner;
    if (block_x() >= *p.n_tiles) return;
    const Tile tile = p.tiles[block_x()];
    T *out = (T *)p.out + head * WIDTH;

    const u64 first = p.row_starts[tile.row];
    const u32 length = p.row_starts[tile.row + 1u] - (u32)first;
    T *shared = (T *)shared_bytes();
    const T *qkv = (const T *)p.qkv + first * stride + head * WIDTH;
    const KeyTiles<T, WIDTH> tiles = {
        shared, shared + 2u * TILE_KEYS * WIDTH, qkv + inner, stride, inner, length};
    float *strip = (float *)(shared + 4u * TILE_KEYS * WIDTH);

    // A causal tile needs no key behind its last query.
    const u32 behind = tile.first + TILE_QUERIES;
    const u32 keys = p.causal != 0u && behind < length ? behind : length;
    const u32 n_tiles = (keys + TILE_KEYS - 1u) / TILE_KEYS;
    tiles.fetch(0u);

    const int reach = (int)p.reach;
    for (u32 i = thread; p.bias != nullptr && i < 2u * p.reach + 1u; i += TILE_THREADS)
        strip[i] = p.bias[(u64)head * (2u * p.reach + 1u) + i];

    // This lane's two queries. Those behind the row's end are computed as its last, not stored.
    u32 query[2], position[2];
    u32 q[WIDTH / 16u][4];
    for (u32 half = 0; half < 2u; half++) {
        query[half] = tile.first + warp * 16u + g + 8u * half;
        const u32 real = query[half] < length ? query[half] : length - 1u;
        position[half] = p.positions != nullptr ? p.positions[first + real] : query[half];
        const u32 *row = (const u32 *)(qkv + real * stride);
#pragma unroll
        for (u32 step = 0; step < WIDTH / 16u; step++) {
            q[step][half] = row[step * 8u + t];
            q[step][2u + half] = row[step * 8u + 4u + t];
        }
    }

    float result[WIDTH / 8u][4];
#pragma unroll
    for (u32 i = 0; i < WIDTH / 8u; i++)
        for (u32 j = 0; j < 4u; j++) result[i][j] = 0.0f;
    float largest[2] = {-1.0f / 0.0f, -1.0f / 0.0f}, total[2] = {0.0f, 0.0f};

    for (u32 number = 0; number < n_tiles; number++) {
        if (number + 1u < n_tiles) {
            tiles.fetch(number + 1u);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        sync_block();
        const u32 stage = (number & 1u) * TILE_KEYS * WIDTH, begin = number * TILE_KEYS;

        float score[TILE_KEYS / 8u][4];
#pragma unroll
        for (u32 i = 0; i < TILE_KEYS / 8u; i++)
            for (u32 j = 0; j < 4u; j++) score[i][j] = 0.0f;
#pragma unroll
        for (u32 step = 0; step < WIDTH / 16u; step++) {
#pragma unroll
            for (u32 pair = 0; pair < TILE_KEYS / 16u; pair++) {
                // Matrices: keys 0-7 with 8 + 8 columns of this step, then keys 8-15.
                const u32 row = pair * 16u + lane / 16u * 8u + lane % 8u;
                const u32 chunk = step * 2u + lane / 8u % 2u;
                u32 k[4];
                load_matrices(k, tile_chunk<T, WIDTH>(tiles.keys + stage, row, chunk));
                multiply_add<T>(score[2u * pair], q[step], k[0], k[1]);
                multiply_add<T>(score[2u * pair + 1u], q[step], k[2], k[3]);
            }
        }

        // To powers of two, with the bias of the distance.
        const int nearest_after = (int)begin - (int)(tile.first + TILE_QUERIES - 1u);
        const int nearest_before = (int)(begin + TILE_KEYS - 1u) - (int)tile.first;
        const bool far = p.positions == nullptr &&
                         (nearest_after >= reach || nearest_before <= -reach);
        if (p.bias == nullptr || far) {
            const float bias =
                p.bias == nullptr ? 0.0f : strip[nearest_after >= reach ? 2 * reach : 0];
#pragma unroll
            for (u32 i = 0; i < TILE_KEYS / 8u; i++)
                for (u32 j = 0; j < 4u; j++) score[i][j] = fused(score[i][j], LOG2_E, bias);
        } else {
#pragma unroll
            for (u32 i = 0; i < TILE_KEYS / 8u; i++) {
#pragma unroll
                for (u32 j = 0; j < 4u; j++) {
                    u32 at = begin + i * 8u + 2u * t + j % 2u;
                    if (p.positions != nullptr)
                        at = p.positions[first + (at < length ? at : length - 1u)];
                    int distance = (int)at - (int)position[j / 2u];
                    distance = distance < -reach ? -reach : distance > reach ? reach : distance;
                    score[i][j] = fused(score[i][j], LOG2_E, strip[distance + reach]);
                }
            }
        }
        if (p.visible != nullptr || p.causal != 0u) {
#pragma unroll
            for (u32 i = 0; i < TILE_KEYS / 8u; i++) {
#pragma unroll
                for (u32 j = 0; j < 4u; j++) {
                    const u32 key = begin + i * 8u + 2u * t + j % 2u;
                    const bool hidden =
                        key < length && ((p.visible != nullptr && p.visible[first + key] == 0) ||
                                         (p.causal != 0u && key > position[j / 2u]));
                    if (hidden) score[i][j] = MASKED;
                }
            }
        }
        if (begin + TILE_KEYS > length) {
#pragma unroll
            for (u32 i = 0; i < TILE_KEYS / 8u; i++)
                for (u32 j = 0; j < 4u; j++)
                    if (begin + i * 8u + 2u * t + j % 2u >= length) score[i][j] = -1.0f / 0.0f;
        }

        float next[2] = {largest[0], largest[1]};
#pragma unroll
        for (u32 i = 0; i < TILE_KEYS / 8u; i++)
            for (u32 j = 0; j < 4u; j++) next[j / 2u] = larger(next[j / 2u], score[i][j]);

        // Four neighbouring lanes share a query.
        float shrink[2];
        for (u32 half = 0; half < 2u; half++) {
            next[half] = larger(next[half], shuffle_xor(next[half], 1u));
            next[half] = larger(next[half], shuffle_xor(next[half], 2u));
            shrink[half] = exp2_fast(largest[half] - next[half]);
            largest[half] = next[half];
            total[half] *= shrink[half];
        }
#pragma unroll
        for (u32 i = 0; i < WIDTH / 8u; i++)
            for (u32 j = 0; j < 4u; j++) result[i][j] *= shrink[j / 2u];
#pragma unroll
        for (u32 i = 0; i < TILE_KEYS / 8u; i++) {
            for (u32 j = 0; j < 4u; j++) {
                score[i][j] = exp2_fast(score[i][j] - largest[j / 2u]);
                total[j / 2u] += score[i][j];
            }
        }

#pragma unroll
        for (u32 step = 0; step < TILE_KEYS / 16u; step++) {
            const u32 weights[4] = {
                pack2<T>(score[2u * step][0], score[2u * step][1]),
                pack2<T>(score[2u * step][2], score[2u * step][3]),
                pack2<T>(score[2u * step + 1u][0], score[2u * step + 1u][1]),
                pack2<T>(score[2u * step + 1u][2], score[2u * step + 1u][3]),
            };
#pragma unroll
            for (u32 pair = 0; pair < WIDTH / 16u; pair++) {
                // Matrices: 8 + 8 keys with 8 columns, then with the next 8; transposed.
                const u32 row = step * 16u + lane / 8u % 2u * 8u + lane % 8u;
                const u32 chunk = pair * 2u + lane / 16u;
                u32 v[4];
                load_matrices_transposed(v,
                                         tile_chunk<T, WIDTH>(tiles.values + stage, row, chunk));
                multiply_add<T>(result[2u * pair], weights, v[0], v[1]);
                multiply_add<T>(result[2u * pair + 1u], weights, v[2], v[3]);
            }
        }
        // The next fetch but one goes where these keys stand.
        sync_block();
    }

    const float gain = p.head_gains != nullptr ? p.head_gains[head] : 1.0f;
    for (u32 half = 0; half < 2u; half++) {
        total[half] += shuffle_xor(total[half], 1u);
        total[half] += shuffle_xor(total[half], 2u);
        if (query[half] >= length) continue;
        const float factor = gain / total[half];
        u32 *to = (u32 *)(out + (first + query[half]) * inner);
#pragma unroll
        for (u32 i = 0; i < WIDTH / 8u; i++)
            to[i * 4u + t] =
                pack2<T>(result[i][2u * half] * factor, result[i][2u * half + 1u] * factor);
    }
}
