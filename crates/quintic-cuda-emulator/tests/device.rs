//! The emulated device itself: what it computes and what it refuses.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use quintic_cuda::device::{Address, Device, Element, Product};
use quintic_cuda::kernels;
use quintic_cuda::memory::Memory;
use quintic_cuda::parameters::{
    AppendKv, AttendPlain, AttendTiles, Convert, Embed, Gate, PlaceRows, PoolRows, RmsNorm,
};
use quintic_cuda_emulator::{EmulatedDevice, parameter_bytes};

fn memory() -> (Arc<EmulatedDevice>, Arc<Memory>) {
    let device = Arc::new(EmulatedDevice::new(1 << 24));
    let memory = Memory::new(Arc::clone(&device) as Arc<dyn Device>);
    (device, memory)
}

#[test]
fn parameters_have_the_sizes_that_the_kernels_read() {
    for (kernels, bytes) in [
        (
            &["embed_f32", "embed_bf16", "embed_f16"][..],
            size_of::<Embed>(),
        ),
        (
            &["rms_norm_f32", "rms_norm_bf16", "rms_norm_f16"],
            size_of::<RmsNorm>(),
        ),
        (&["gate_f32", "gate_bf16", "gate_f16"], size_of::<Gate>()),
        (&["convert_any"], size_of::<Convert>()),
        (&["pool_f32"], size_of::<PoolRows>()),
        (&["place_f32"], size_of::<PlaceRows>()),
        (&["append_kv_f32", "append_kv_16"], size_of::<AppendKv>()),
        (
            &["attend_plain_f32", "attend_plain_bf16", "attend_plain_f16"],
            size_of::<AttendPlain>(),
        ),
        (
            &[
                "attend_64_bf16",
                "attend_64_f16",
                "attend_128_bf16",
                "attend_128_f16",
            ],
            size_of::<AttendTiles>(),
        ),
    ] {
        for kernel in kernels {
            assert_eq!(parameter_bytes(kernel), Some(bytes), "{kernel}");
        }
    }
    assert_eq!(parameter_bytes("embed_f8"), None);
}

/// Every 16-bit pattern to f32 and back, and f32s around the places where rounding turns.
#[test]
fn conversions_round_as_ieee_does() {
    let (device, memory) = memory();
    fn convert<T: bytemuck::Pod>(
        (device, memory): (&EmulatedDevice, &Arc<Memory>),
        values: &[u8],
        from: Element,
        to: Element,
    ) -> Vec<T> {
        let src = memory.upload(values).unwrap();
        let count = values.len() / from.bytes();
        let dst = memory.buffer(count * to.bytes()).unwrap();
        let p = Convert {
            src: src.address(),
            dst: dst.address(),
            count: count as u64,
            columns: 1,
            ..Convert::default()
        };
        // SAFETY: both buffers hold `count` values.
        unsafe { kernels::convert(device, from, to, &p).unwrap() };
        dst.read(0, count).unwrap()
    }
    let on = (device.as_ref(), &memory);
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    for half in [Element::F16, Element::Bf16] {
        let f32s: Vec<f32> = convert(on, bytemuck::cast_slice(&halves), half, Element::F32);
        for (bits, found) in halves.iter().zip(&f32s) {
            let expected = match half {
                Element::F16 => half::f16::from_bits(*bits).to_f32(),
                _ => half::bf16::from_bits(*bits).to_f32(),
            };
            assert!(
                *found == expected || found.is_nan() && expected.is_nan(),
                "{bits:#x}: {found}, {expected}"
            );
        }
        // Exactly between two neighbours, and one bit to each side of that.
        let mut turns = Vec::new();
        for pair in f32s
            .windows(2)
            .filter(|pair| pair[1].is_finite() && pair[0].is_finite())
        {
            let between = ((f64::from(pair[0]) + f64::from(pair[1])) / 2.0) as f32;
            turns.extend([between.next_down(), between, between.next_up()]);
        }
        turns.extend([65519.0, 65520.0, 1e30, f32::INFINITY, f32::MAX, -70000.0]);
        let back: Vec<u16> = convert(on, bytemuck::cast_slice(&turns), Element::F32, half);
        for (value, found) in turns.iter().zip(back) {
            let expected = match half {
                Element::F16 => half::f16::from_f32(*value).to_bits(),
                _ => half::bf16::from_f32(*value).to_bits(),
            };
            assert_eq!(found, expected, "{value:e}");
        }
    }
}

#[test]
fn a_recording_is_run_when_it_is_replayed_and_not_before() {
    let (device, memory) = memory();
    let (from, to) = (
        memory.upload(&[1u32, 2]).unwrap(),
        memory.upload(&[0u32, 0]).unwrap(),
    );
    device.begin_recording().unwrap();
    to.copy_from(0, &from, 0, 8).unwrap();
    assert!(
        from.write(0, &[9u32]).is_err(),
        "an upload inside a recording"
    );
    assert!(
        from.read::<u32>(0, 1).is_err(),
        "a download inside a recording"
    );
    assert!(
        device.begin_recording().is_err(),
        "a recording inside a recording"
    );
    let recording = device.end_recording().unwrap();
    assert!(device.end_recording().is_err());
    assert_eq!(to.read::<u32>(0, 2).unwrap(), [0, 0]);
    from.write(0, &[5u32, 6]).unwrap();
    // SAFETY: both buffers are alive.
    unsafe { device.replay(&recording).unwrap() };
    assert_eq!(to.read::<u32>(0, 2).unwrap(), [5, 6]);
}

#[test]
fn products_that_a_device_has_not_are_refused() {
    let (device, memory) = memory();
    let x = memory.upload(&[1.0f32, 2.0]).unwrap();
    let product = Product {
        tokens: 1,
        columns: 1,
        depth: 2,
        x: x.address(),
        w: x.address(),
        out: x.address(),
        factors: Element::F32,
        result: Element::F32,
        alpha: 0.5,
        accumulate: true,
        tune: false,
    };
    // SAFETY: the factors have two values, the result one.
    unsafe { device.multiply(&product).unwrap() };
    assert_eq!(x.read::<f32>(0, 2).unwrap(), [1.0 + 0.5 * 5.0, 2.0]);
    for wrong in [
        Product {
            result: Element::Bf16,
            accumulate: false,
            ..product
        },
        Product {
            factors: Element::F16,
            result: Element::F16,
            ..product
        },
        Product {
            x: Address(16),
            ..product
        },
    ] {
        // SAFETY: refused before anything is touched.
        assert!(unsafe { device.multiply(&wrong) }.is_err(), "{wrong:?}");
    }
}

#[test]
fn memory_is_reused_and_given_back() {
    let (device, memory) = memory();
    let first = memory.buffer(1000).unwrap();
    let address = first.address();
    drop(first);
    let again = memory.buffer(900).unwrap();
    assert_eq!(again.address(), address, "nearly the same size");
    let small = memory.buffer(100).unwrap();
    assert_ne!(small.address(), address);
    drop((again, small));
    let lease = memory.lease();
    assert!(!memory.trim(), "recordings may use it");
    drop(lease);
    assert!(memory.trim());
    assert_eq!(device.allocated_bytes(), 0);
    // What is unused makes room for what is needed.
    let half = memory.buffer(10 << 20).unwrap();
    drop(half);
    assert!(memory.buffer(3 << 20).is_ok());
    assert!(memory.buffer(15 << 20).is_err() || device.allocated_bytes() <= 1 << 24);
}
