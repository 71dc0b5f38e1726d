#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = quintic::config::T5Config::from_json(data);
});
