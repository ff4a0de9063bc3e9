"""What trains the embedded models from nothing: painted pools of the synthetic world, linear probes, SigLIP pairs,
preferences from a model's own errors."""
