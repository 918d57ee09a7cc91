//! The signatures of tokens by ring, which TLS uses as well, so that no second
//! implementation of cryptography is linked.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
};
use ring::{
    hmac,
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
        RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
    },
};
use signature::{Error, Signer, Verifier};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| {
        check_family(*algorithm, key.family())?;
        Ok(Box::new(TokenSigner(*algorithm, key.clone())))
    },
    verifier_factory: |algorithm, key| {
        check_family(*algorithm, key.family())?;
        Ok(Box::new(TokenVerifier(*algorithm, key.clone())))
    },
    // No JWK is made from a private key here.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Must run before anything else of the library.
pub fn install() {
    // An error means that it is already installed.
    let _ = PROVIDER.install_default();
}

fn check_family(algorithm: Algorithm, family: AlgorithmFamily) -> Result<()> {
    let expected = match algorithm {
        Algorithm::HS256 => AlgorithmFamily::Hmac,
        Algorithm::RS256 => AlgorithmFamily::Rsa,
        Algorithm::ES256 => AlgorithmFamily::Ec,
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    if family == expected {
        Ok(())
    } else {
        Err(ErrorKind::InvalidKeyFormat.into())
    }
}

/// Whether the key, which is of this algorithm, signed the message.
pub fn verifies(algorithm: Algorithm, key: &DecodingKey, message: &[u8], signature: &[u8]) -> bool {
    let verifier = TokenVerifier(algorithm, key.clone());
    check_family(algorithm, key.family()).is_ok()
        && verifier.verify(message, &signature.to_vec()).is_ok()
}

/// `None`: the key is of another algorithm.
pub fn sign(algorithm: Algorithm, key: &EncodingKey, message: &[u8]) -> Option<Vec<u8>> {
    check_family(algorithm, key.family()).ok()?;
    TokenSigner(algorithm, key.clone()).try_sign(message).ok()
}

struct TokenSigner(Algorithm, EncodingKey);

impl JwtSigner for TokenSigner {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

impl Signer<Vec<u8>> for TokenSigner {
    /// Private keys are PKCS #8.
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        let (key, random) = (self.1.as_bytes(), SystemRandom::new());
        match self.0 {
            Algorithm::HS256 => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, key);
                Ok(hmac::sign(&key, message).as_ref().to_vec())
            }
            Algorithm::RS256 => {
                let pair = rsa::KeyPair::from_pkcs8(key).map_err(|_| Error::new())?;
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .map_err(|_| Error::new())?;
                Ok(signature)
            }
            _ => {
                let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
                let pair = EcdsaKeyPair::from_pkcs8(algorithm, key, &random);
                let pair = pair.map_err(|_| Error::new())?;
                let signature = pair.sign(&random, message).map_err(|_| Error::new())?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

struct TokenVerifier(Algorithm, DecodingKey);

impl JwtVerifier for TokenVerifier {
    fn algorithm(&self) -> Algorithm {
        self.0
    }
}

impl Verifier<Vec<u8>> for TokenVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let verified = match (self.0, self.1.kind()) {
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
                let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, signature)
            }
            (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::verify(&key, message, signature)
            }
            _ => return Err(Error::new()),
        };
        verified.map_err(|_| Error::new())
    }
}
