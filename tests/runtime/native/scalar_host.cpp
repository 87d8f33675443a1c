// What the tests call of scalar.h.
#include "scalar.h"

extern "C" {

// Words [4][n] of counters [4][n], one counter at a time.
void philox_words(const unsigned *counter, unsigned *words, long n, unsigned k0, unsigned k1) {
    for (long i = 0; i < n; ++i) {
        unsigned c[4] = {counter[i], counter[n + i], counter[2 * n + i], counter[3 * n + i]};
        analogc::philox4x32_10(c[0], c[1], c[2], c[3], k0, k1);
        for (int w = 0; w < 4; ++w) words[w * n + i] = c[w];
    }
}

void normal_pairs(const unsigned *radius, const unsigned *angle, float *z0, float *z1, long n) {
    for (long i = 0; i < n; ++i) analogc::normal_pair(radius[i], angle[i], z0[i], z1[i]);
}

void dac_codes(const float *x, float *codes, long n, float steps, float levels) {
    for (long i = 0; i < n; ++i) codes[i] = analogc::dac_code(x[i], steps, levels);
}

// ADC codes and where they did not clip.
void adc_codes(const float *p, const float *z, float *codes, bool *inside, long n, float p_steps,
               float z_steps, float levels) {
    for (long i = 0; i < n; ++i) {
        const float t = analogc::adc_input(p[i], p_steps, z[i], z_steps);
        codes[i] = analogc::adc_step(t, levels);
        inside[i] = analogc::adc_inside(t, levels);
    }
}

}  // extern "C"
