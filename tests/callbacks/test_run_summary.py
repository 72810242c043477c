from conftest import SMALL

QUICK = [*SMALL, "--trainer.enable_model_summary=true", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]


def test_what_is_trained_on_what(run):
    said = " ".join(run("fit", *QUICK, "--model.hidden_sizes=[6, 6, 4]").split())
    assert "Network: 2 x 6, 4 selu, lecun_normal; " in said
    assert "images mirrored" not in said


def test_blocks_and_changes_of_images_are_named(run):
    flags = ["--model.block=residual", "--model.hidden_sizes=3x6", "--model.activation=gelu", "--model.mixup=0.2"]
    said = " ".join(run("fit", *QUICK, *flags, "--data.flip=true", "--data.shift=2").split())
    assert "Network: 3 x 6 gelu, lecun_normal, residual blocks; " in said
    assert "images mirrored, shifted by up to 2 pixels, mixed, Beta(0.2, 0.2); " in said
