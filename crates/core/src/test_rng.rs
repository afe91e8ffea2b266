//! Reproducible noise for tests.

/// A linear congruential generator (Knuth, MMIX), by its state.
pub struct TestRng(pub u64);

impl TestRng {
    /// The next number of `0.0..1.0`.
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1 << 24) as f64
    }

    /// A standard normal number (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().max(1e-7).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}
