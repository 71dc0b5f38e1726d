//! Names of the activations.

/// An activation of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// GELU by its tanh approximation.
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// Logistic function.
    Sigmoid,
    /// `x`.
    Linear,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Activation; 8] = [
        Activation::Relu,
        Activation::GeluTanh,
        Activation::GeluErf,
        Activation::QuickGelu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
        Activation::Linear,
    ];
}
