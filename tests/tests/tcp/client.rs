//! What tests of TCP share: a client of the Service, and bytes that are known by their hash.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};
use sluice_tests::{PATIENCE, World};
use socket2::SockRef;

pub fn connect(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.frontend).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Sends `bytes` pseudo-random bytes and closes that side; returns their hash.
pub fn send_random(mut stream: &TcpStream, seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let length = left.min(chunk.len());
        random.fill(&mut chunk[..length]);
        hash.update(&chunk[..length]);
        stream.write_all(&chunk[..length]).unwrap();
        left -= length;
    }
    stream.shutdown(Shutdown::Write).unwrap();
    hash.finalize().to_vec()
}

/// Reads to the end; returns how many bytes there were and their hash.
pub fn receive_all(mut stream: &TcpStream) -> (usize, Vec<u8>) {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match stream.read(&mut chunk).unwrap() {
            0 => return (total, hash.finalize().to_vec()),
            n => {
                hash.update(&chunk[..n]);
                total += n;
            }
        }
    }
}
