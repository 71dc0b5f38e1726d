//! Which products are left out of what is made of the others' weights.

use std::fmt;
use std::ops::RangeInclusive;

use crate::weight_type::ProductKind;
use crate::{Error, Result};

/// Half of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stack {
    /// The encoder.
    Encoder,
    /// The decoder, its output head included.
    Decoder,
}

impl Stack {
    /// Both.
    pub const ALL: [Stack; 2] = [Stack::Encoder, Stack::Decoder];

    /// `encoder` or `decoder`.
    pub fn name(self) -> &'static str {
        match self {
            Stack::Encoder => "encoder",
            Stack::Decoder => "decoder",
        }
    }
}

/// The products of one kind in one layer. In a decoder's layer, those of cross-attention are among
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// Which half of the model.
    pub stack: Stack,
    /// Which layer of it, from 0.
    pub layer: usize,
    /// Which product of the layer.
    pub kind: ProductKind,
}

impl Site {
    /// The output head, which is in no layer.
    pub const HEAD: Site = Site {
        stack: Stack::Decoder,
        layer: 0,
        kind: ProductKind::Head,
    };

    /// What [`Site`]'s text is read back by: `head`, or such as `encoder.3.wo`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for anything else.
    pub fn parse(name: &str) -> Result<Self> {
        match parse_sites(name) {
            Some((stack, layers, kind)) if layers.start() == layers.end() => Ok(Site {
                stack,
                layer: *layers.start(),
                kind,
            }),
            None if name == ProductKind::Head.name() => Ok(Site::HEAD),
            _ => Err(Error::unsupported(format!(
                "there is no product `{name}`, expected `head` or such as `encoder.3.wo`"
            ))),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ProductKind::Head => f.write_str(self.kind.name()),
            kind => write!(f, "{}.{}.{}", self.stack.name(), self.layer, kind.name()),
        }
    }
}

/// Kinds of products that layers have.
const LAYER_KINDS: usize = ProductKind::ALL.len() - 1;

/// Products whose weights stay as [`WeightType::AsStored`](crate::WeightType::AsStored) has them:
/// those of a kind everywhere, or those of single layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keep {
    /// A bit a kind that is kept everywhere.
    kinds: u8,
    /// By half and kind, a bit a layer. None of a kind that is kept everywhere.
    layers: [[u64; LAYER_KINDS]; 2],
}

impl Keep {
    /// Layers of a half that can be told from each other. Published models have up to 48.
    pub const MAX_LAYERS: usize = u64::BITS as usize;

    /// Products of these kinds, everywhere.
    pub fn of(kinds: &[ProductKind]) -> Self {
        Keep {
            kinds: kinds.iter().fold(0, |set, &kind| set | 1 << kind as u8),
            ..Keep::default()
        }
    }

    /// These products.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if a layer is not below
    /// [`Keep::MAX_LAYERS`].
    pub fn of_sites(sites: impl IntoIterator<Item = Site>) -> Result<Self> {
        let mut keep = Keep::default();
        for site in sites {
            keep.add(site.stack, site.layer..=site.layer, site.kind)?;
        }
        keep.tidy();
        Ok(keep)
    }

    fn add(
        &mut self,
        stack: Stack,
        layers: RangeInclusive<usize>,
        kind: ProductKind,
    ) -> Result<()> {
        if kind == ProductKind::Head {
            self.kinds |= 1 << kind as u8;
            return Ok(());
        }
        if *layers.end() >= Self::MAX_LAYERS {
            return Err(Error::unsupported(format!(
                "products of layer {} cannot be kept by themselves, expected a layer below {}",
                layers.end(),
                Self::MAX_LAYERS
            )));
        }
        for layer in layers {
            self.layers[stack as usize][kind as usize] |= 1 << layer;
        }
        Ok(())
    }

    /// One form for one set.
    fn tidy(&mut self) {
        for kind in 0..LAYER_KINDS {
            if self.kinds >> kind & 1 == 1 {
                self.layers.iter_mut().for_each(|stack| stack[kind] = 0);
            }
        }
    }

    /// Whether a product is among them.
    pub fn contains(&self, site: Site) -> bool {
        let kind = site.kind as usize;
        self.kinds >> kind & 1 == 1
            || site.kind != ProductKind::Head
                && site.layer < Self::MAX_LAYERS
                && self.layers[site.stack as usize][kind] >> site.layer & 1 == 1
    }

    /// Names, separated by commas; `none` if there are none. `wo` is every `wo` of the model,
    /// `encoder.0-3.wo` that of the encoder's first four layers.
    pub fn names(&self) -> String {
        let kinds = ProductKind::ALL
            .into_iter()
            .filter(|&kind| self.kinds >> kind as u8 & 1 == 1);
        let mut names: Vec<String> = kinds.map(|kind| kind.name().to_owned()).collect();
        for stack in Stack::ALL {
            for kind in &ProductKind::ALL[..LAYER_KINDS] {
                let bits = self.layers[stack as usize][*kind as usize];
                names.extend(runs(bits).map(|layers| {
                    let (first, last) = layers.into_inner();
                    let layers = match first == last {
                        true => first.to_string(),
                        false => format!("{first}-{last}"),
                    };
                    format!("{}.{layers}.{}", stack.name(), kind.name())
                }));
            }
        }
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(","),
        }
    }

    /// What [`Keep::names`] writes, in any order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a name that is no product's.
    pub fn parse(names: &str) -> Result<Self> {
        let mut keep = Keep::default();
        if names == "none" {
            return Ok(keep);
        }
        for name in names.split(',') {
            match (ProductKind::of_name(name), parse_sites(name)) {
                (Some(kind), _) => keep.kinds |= 1 << kind as u8,
                (None, Some((stack, layers, kind))) => keep.add(stack, layers, kind)?,
                (None, None) => {
                    return Err(Error::unsupported(format!(
                        "there is no product `{name}`, expected `qkv`, `o`, `wi`, `wo`, `head`, \
                         those of layers such as `encoder.0-3.wo`, or `none` alone"
                    )));
                }
            }
        }
        keep.tidy();
        Ok(keep)
    }
}

/// Runs of bits that are set, the lowest first.
fn runs(mut bits: u64) -> impl Iterator<Item = RangeInclusive<usize>> {
    std::iter::from_fn(move || {
        let first = bits.trailing_zeros();
        let shifted = bits.checked_shr(first)?;
        let n = shifted.trailing_ones();
        let last = first + n - 1;
        bits &= u64::MAX.checked_shl(last + 1).unwrap_or(0);
        Some(first as usize..=last as usize)
    })
}

/// The parts of such a name as `encoder.3.wo` or `decoder.0-5.qkv`.
fn parse_sites(name: &str) -> Option<(Stack, RangeInclusive<usize>, ProductKind)> {
    let mut parts = name.split('.');
    let (stack, layers, kind) = (parts.next()?, parts.next()?, parts.next()?);
    let stack = Stack::ALL.into_iter().find(|own| own.name() == stack)?;
    let kind = ProductKind::of_name(kind).filter(|&kind| kind != ProductKind::Head)?;
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    };
    let (first, last): (usize, usize) = match layers.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(layers)?, number(layers)?),
    };
    (parts.next().is_none() && first <= last).then_some((stack, first..=last, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(stack: Stack, layer: usize, kind: ProductKind) -> Site {
        Site { stack, layer, kind }
    }

    #[test]
    fn names_are_read_back() {
        for set in 0..1 << ProductKind::ALL.len() {
            let keep = Keep {
                kinds: set,
                ..Keep::default()
            };
            assert_eq!(Keep::parse(&keep.names()).unwrap(), keep);
        }
        assert_eq!(Keep::parse("wo,qkv").unwrap().names(), "qkv,wo");
        for names in [
            "",
            "wo,",
            "none,wo",
            "up",
            "encoder.wo",
            "encoder.1.head",
            "encoder.3-1.wo",
            "encoder.+1.wo",
            "encoder.1.wo.2",
            "encoder..wo",
            "encoder.64.wo",
            "encoder.0-18446744073709551616.wo",
        ] {
            assert!(Keep::parse(names).is_err(), "{names}");
        }
    }

    #[test]
    fn layers_are_kept_by_themselves() {
        use ProductKind::{Head, O, Qkv, Wo};
        use Stack::{Decoder, Encoder};
        let names = "head,encoder.0-3.o,encoder.63.o,decoder.5.qkv";
        let keep = Keep::parse("decoder.5.qkv,encoder.63.o,encoder.2-3.o,head,encoder.0-2.o");
        let keep = keep.unwrap();
        assert_eq!(keep.names(), names);
        let sites = [0, 1, 2, 3, 63].map(|layer| site(Encoder, layer, O));
        let sites = sites.into_iter().chain([site(Decoder, 5, Qkv), Site::HEAD]);
        assert_eq!(Keep::of_sites(sites.clone()).unwrap(), keep);
        for site in sites {
            assert!(keep.contains(site), "{site}");
            assert_eq!(Site::parse(&site.to_string()).unwrap(), site);
        }
        for other in [
            site(Encoder, 4, O),
            site(Encoder, 64, O),
            site(Decoder, 0, O),
            site(Encoder, 5, Qkv),
            site(Encoder, 0, Wo),
        ] {
            assert!(!keep.contains(other), "{other}");
        }
        assert!(!Keep::of(&[Wo]).contains(Site::HEAD) && Keep::of(&[Head]).contains(Site::HEAD));
        assert!(Keep::of(&[Wo]).contains(site(Decoder, 99, Wo)));
        // A kind that is kept everywhere needs no layers.
        assert_eq!(Keep::parse("encoder.1.wo,wo").unwrap(), Keep::of(&[Wo]));
        assert!(Keep::of_sites([site(Encoder, Keep::MAX_LAYERS, O)]).is_err());
        assert!(Site::parse("encoder.0-1.wo").is_err() && Site::parse("wo").is_err());
    }
}
