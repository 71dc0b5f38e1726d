//! Which feed-forward layer a config means. The rules are transformers', traps included.

use super::Family;
use super::fields::Fields;
use crate::{Error, Result};

/// An elementwise function of a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`, which T5 v1.1 was trained with.
    GeluTanh,
    /// `x / 2 * (1 + erf(x / sqrt(2)))`.
    GeluErf,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// `tanh(x)`.
    Tanh,
    /// `1 / (1 + exp(-x))`.
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

    /// The function of a transformers name; several names can mean one function.
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "relu" => Activation::Relu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate"
            | "gelu_python_tanh" => Activation::GeluTanh,
            "gelu" | "gelu_python" => Activation::GeluErf,
            "quick_gelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            "linear" => Activation::Linear,
            _ => return None,
        })
    }

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::GeluTanh => "gelu (tanh)",
            Activation::GeluErf => "gelu (erf)",
            Activation::QuickGelu => "quick_gelu",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
            Activation::Linear => "linear",
        }
    }
}

/// `wo(act(wi(x)))`, or gated: `wo(act(wi_0(x)) * wi_1(x))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeedForward {
    /// Whether there are two input products, multiplied with each other.
    pub gated: bool,
    /// The function applied to the first (or only) input product.
    pub activation: Activation,
}

/// `feed_forward_proj` gives gate and activation; `dense_act_fn` and `is_gated_act`, where a
/// file has them, replace what it gave. transformers does so because it sets the leftover
/// JSON keys as attributes after it has parsed `feed_forward_proj`. Copies of FLUX's config
/// rely on it: they have only the replaced form.
pub(super) fn read(
    fields: &mut Fields,
    family: Option<Family>,
    warnings: &mut Vec<String>,
) -> Result<FeedForward> {
    let written = fields.text("feed_forward_proj")?;
    let default = match family {
        Some(Family::T5) => "relu",
        Some(Family::Mt5 | Family::Umt5) | None => "gated-gelu",
    };
    let (mut gated, mut name) = parse(written.as_deref().unwrap_or(default))?;
    if let Some(function) = fields.text("dense_act_fn")? {
        if written.is_some() && Activation::parse(&function) != Activation::parse(&name) {
            warnings.push(format!(
                "`dense_act_fn` is `{function}`, `feed_forward_proj` means `{name}`: \
                 `dense_act_fn` is followed, as transformers does"
            ));
        }
        name = function;
    }
    if let Some(flag) = fields.boolean("is_gated_act")? {
        if written.is_some() && flag != gated {
            warnings.push(format!(
                "`is_gated_act` is {flag}, `feed_forward_proj` says otherwise: \
                 `is_gated_act` is followed, as transformers does"
            ));
        }
        gated = flag;
    }
    let activation = Activation::parse(&name).ok_or_else(|| {
        Error::unsupported(format!(
            "activation `{name}` is not one that this version computes"
        ))
        .at("field `feed_forward_proj` or `dense_act_fn`")
    })?;
    Ok(FeedForward { gated, activation })
}

/// `[gated-]ACT`; only the whole text `gated-gelu` means the tanh form.
fn parse(text: &str) -> Result<(bool, String)> {
    if text == "gated-gelu" {
        return Ok((true, "gelu_new".to_owned()));
    }
    let parts: Vec<&str> = text.split('-').collect();
    match parts[..] {
        [function] => Ok((false, function.to_owned())),
        ["gated", function] => Ok((true, function.to_owned())),
        _ => Err(
            Error::config(format!("found `{text}`, expected `ACT` or `gated-ACT`"))
                .at("field `feed_forward_proj`"),
        ),
    }
}
