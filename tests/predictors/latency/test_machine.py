from lownas.predictors.latency.machine import describe_cpu, library_version


def test_cpus_of_one_architecture_have_different_names() -> None:
    arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
    names = {
        describe_cpu(arm, "Raspberry Pi 4 Model B Rev 1.4\0"),
        describe_cpu(arm, ""),
        describe_cpu(arm.replace("0xd08", "0xd0c"), ""),
    }
    assert len(names) == 3
    assert "Raspberry Pi 4 Model B Rev 1.4 (implementer 0x41 part 0xd08)" in names
    x86 = "model name\t: Some CPU\ncpu family\t: 6\nmodel\t: 85\nflags\t: fpu avx avx2\n"
    assert describe_cpu(x86, "") == "Some CPU (family 6 model 85) avx2"


def test_versions_are_found_without_importing():
    assert library_version("numpy")[0].isdigit()
    assert library_version("toy-runtime") == "none"
