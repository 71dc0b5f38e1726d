fn main() {
    use quintic::backend::Chosen;
    use quintic::*;
    use std::time::Instant;
    let args: Vec<String> = std::env::args().collect();
    let rows: usize = args[2].parse().unwrap();
    let dtype = ComputeType::parse(&args[1]).unwrap();
    let config = synthetic::config("v1_1-base").unwrap();
    let stored = if dtype == ComputeType::F32 {
        DType::F32
    } else {
        DType::BF16
    };
    let mut w = synthetic::SyntheticWeights::new(config.clone(), stored);
    let compute = Compute {
        dtype,
        ..Compute::default()
    };
    let model = Seq2Seq::from_source(config, &mut w, BackendKind::Cpu, &compute).unwrap();
    let sources = synthetic::token_rows(&vec![64; rows], 32128);
    for _ in 0..5 {
        let start = Instant::now();
        let mut r = model.rows(Sources::Ids(&sources), None).unwrap();
        r.admit(&(0..rows).collect::<Vec<_>>()).unwrap();
        let encoded = start.elapsed();
        let mut ids = vec![0u32; rows];
        for _ in 0..64 {
            let t: Vec<&[u32]> = ids.chunks(1).collect();
            r.advance(&t).unwrap();
            ids = r.best().unwrap().iter().map(|c: &Chosen| c.id).collect();
        }
        let t = start.elapsed();
        println!(
            "encode {:?} total {:?} tok/s {:.1} step {:.2} ms",
            encoded,
            t,
            (64 * rows) as f64 / t.as_secs_f64(),
            (t - encoded).as_secs_f64() * 1e3 / 64.0
        );
    }
}
